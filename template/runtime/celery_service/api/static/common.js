// What both pages use: calls of the API with its key, event streams, and texts.

const KEY = "api-key";

/** Why a call failed, in words for people. The status is 0 if the server can't be reached. */
export class Problem extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/**
 * Call the API, and give the response. If it wants a key, the page asks for one first: a call in the background does
 * so only if nobody has closed the dialog yet.
 */
export async function call(method, path, { body, headers = {}, signal, background = false } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const response = await send(method, path, { body, headers, signal }, key);
    if (response.ok) return response;
    if (response.status !== 401) throw await problem(response);
    // Another call may have asked for the key in the meantime.
    if (key !== sessionStorage.getItem(KEY)) continue;
    if (background && locked) throw new Problem(401, WANTED);
    await askForKey(key !== null);
  }
}

async function send(method, path, { body, headers, signal }, key) {
  const all = new Headers(headers);
  if (key !== null) all.set("X-API-Key", key);
  if (body !== undefined) all.set("Content-Type", "application/json");
  try {
    return await fetch(path, { method, headers: all, signal, body: body && JSON.stringify(body) });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Problem(0, "The service can't be reached.");
  }
}

async function problem(response) {
  const { title, detail } = await response.json().catch(() => ({}));
  return new Problem(response.status, detail || title || `Status ${response.status}`);
}

const WANTED = "The service wants its API key.";
let asked;

/** Whether somebody has closed the dialog without a key. */
export let locked = false;

/** Show the dialog for the key, once for all calls that wait for it. */
function askForKey(wasWrong) {
  asked ??= new Promise((resolve, reject) => {
    const dialog = document.getElementById("key-dialog");
    const input = document.getElementById("key");
    document.getElementById("key-error").textContent = wasWrong ? "The service refuses this key." : "";
    input.value = "";
    dialog.returnValue = "";
    dialog.onclose = () => {
      asked = undefined;
      locked = dialog.returnValue !== "ok";
      if (locked) return reject(new Problem(401, WANTED));
      sessionStorage.setItem(KEY, input.value);
      input.value = "";
      resolve();
    };
    dialog.showModal();
    input.focus();
  });
  return asked;
}

/**
 * Give the events of a stream as they come: {id, type, data}. EventSource can't send the key.
 * https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
 */
export async function* events(path, { lastId, signal }) {
  const headers = { Accept: "text/event-stream", ...(lastId && { "Last-Event-ID": lastId }) };
  const response = await call("GET", path, { headers, signal, background: true });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  let event = { data: [] };
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    // At the end of what has come, \r may be the first half of \r\n.
    const lines = (text + value).split(/\r\n|\n|\r(?!$)/);
    text = lines.pop();
    for (const line of lines) {
      const [, field, content] = line.match(/^([^:]*):? ?(.*)$/s);
      if (line === "") {
        if (event.data.length) yield { ...event, data: event.data.join("\n") };
        event = { id: event.id, data: [] };
      } else if (field === "data") event.data.push(content);
      else if (field === "event") event.type = content;
      else if (field === "id") event.id = content;
    }
  }
}

/** Wait so long, or until the signal. */
export function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}

/** Copy a template of the page. */
export function copyOf(id) {
  return document.getElementById(id).content.firstElementChild.cloneNode(true);
}

/** Set a text, unless the element has it: a screen reader reads a change. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Give a duration in words: 90 is "1 min". */
export function duration(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}
