// Submits reports, shows their progress from their event streams, and remembers them in this browser.

import { Problem, call, copyOf, events, locked, pause, say } from "./common.js";

const STORED = "recent-tasks";
const MOST = 20;
// A browser opens six connections to a server, for all tabs together. The other tasks are polled.
const MOST_STREAMS = 2;
const POLL = 3000;
const STATES = {
  PENDING: ["Waiting", "waiting"],
  RECEIVED: ["Waiting", "waiting"],
  RETRY: ["Waiting for a retry", "waiting"],
  STARTED: ["Running", "running"],
  PROGRESS: ["Running", "running"],
  SUCCESS: ["Done", "done"],
  FAILURE: ["Failed", "failed"],
  REVOKED: ["Cancelled", "cancelled"],
  UNKNOWN: ["No longer known", "cancelled"],
};
const OPENED = Date.now();
const ENDED = new Set(["SUCCESS", "FAILURE", "REVOKED", "UNKNOWN"]);

const form = document.getElementById("report");
const folders = document.getElementById("folders");
const list = document.getElementById("tasks");

/** A task in the list, and what is known of it. */
class Task {
  constructor({ id, label, sent, cancelled = false }) {
    Object.assign(this, { id, label, sent, cancelled, status: "PENDING", lastId: "" });
    this.path = `api/v1/tasks/${encodeURIComponent(id)}`;
    this.element = copyOf("task");
    for (const name of ["title", "badge", "message", "result", "cancel", "forget"]) {
      this[name] = this.element.querySelector(`.${name}`);
    }
    this.bar = this.element.querySelector("progress");
    this.bar.setAttribute("aria-label", `Progress of ${label}`);
    this.cancel.setAttribute("aria-label", `Cancel ${label}`);
    this.forget.setAttribute("aria-label", `Remove ${label} from the list`);
    this.title.textContent = label;
    this.element.querySelector(".id").textContent = id;
    const time = this.element.querySelector("time");
    time.dateTime = new Date(sent).toISOString();
    time.textContent = new Date(sent).toLocaleString();
    this.cancel.onclick = () => this.revoke();
    this.forget.onclick = () => forget(this);
    this.update({ status: "PENDING" });
  }

  get ended() {
    return ENDED.has(this.status);
  }

  /** Show what the API says of it. */
  update(found) {
    if (this.ended) return; // this answer is older
    const { status, progress, result, error } = found;
    const isNew = Boolean(this.last?.task_id) || this.sent > OPENED;
    this.last = found;
    this.status = status;
    const [name, look] = STATES[status] ?? [status, "running"];
    say(this.badge, this.cancelled && !this.ended ? "Cancelling" : name);
    this.badge.dataset.look = look;
    if (status === "SUCCESS") this.bar.value = 100;
    else if (progress?.percent != null) this.bar.value = progress.percent;
    else if (look === "waiting") this.bar.value = 0;
    else if (look === "running") this.bar.removeAttribute("value"); // nobody knows how far it is
    this.bar.hidden = this.ended && status !== "SUCCESS";
    say(this.message, error ? `${error.type}: ${error.message}` : this.ended ? "" : told(progress));
    this.message.classList.toggle("error", Boolean(error));
    this.result.hidden = status !== "SUCCESS";
    if (status === "SUCCESS") this.result.querySelector("pre").textContent = JSON.stringify(result, null, 2);
    this.forget.hidden = !this.ended;
    if (this.ended) {
      if (isNew) announce(`${this.label}: ${name}`);
      // The focus would be lost with the button.
      if (document.activeElement === this.cancel) this.forget.focus();
      this.stop();
    }
    this.cancel.hidden = this.ended;
    this.cancel.setAttribute("aria-disabled", String(this.cancelled));
  }

  /** Ask once. */
  async refresh() {
    try {
      this.update(await (await call("GET", this.path, { background: true })).json());
    } catch (error) {
      this.fail(error);
    }
  }

  /** Listen until it ends. */
  async follow() {
    this.stream = new AbortController();
    const { signal } = this.stream;
    for (let wait = 500; !signal.aborted; wait = Math.min(2 * wait, 10_000)) {
      try {
        for await (const event of events(`${this.path}/events`, { lastId: this.lastId, signal })) {
          if (event.id) this.lastId = event.id;
          if (event.type === "progress" || event.type === "state") this.update(JSON.parse(event.data));
          wait = 500;
        }
      } catch (error) {
        if (!signal.aborted) this.fail(error);
      }
      await pause(wait, signal);
    }
  }

  stop() {
    this.stream?.abort();
    this.stream = undefined;
  }

  async revoke() {
    if (this.cancelled) return;
    this.cancelled = true;
    this.update(this.last);
    try {
      await call("DELETE", `${this.path}?terminate=true`);
      announce(`${this.label}: cancelling`);
    } catch (error) {
      this.cancelled = false;
      this.update(this.last);
      this.fail(error);
    }
    store();
  }

  /** Show what kept a call from working. What is no longer known has ended. */
  fail(error) {
    if (!(error instanceof Problem)) say(this.message, "The connection broke. Trying again.");
    else if (error.status === 404) this.update({ status: "UNKNOWN" });
    else say(this.message, error.message);
    if (error.status === 401) this.stop();
  }
}

/** What is told of the progress, such as "2 of 3 · Measured photos". */
function told(progress) {
  if (!progress) return "";
  const { current, total, percent, message } = progress;
  const count = total ? `${current} of ${total}` : percent != null ? `${percent} %` : "";
  return [count, message].filter(Boolean).join(" · ");
}

function announce(text) {
  document.getElementById("status").textContent = text;
}

// --- the list ---

let tasks = [];

function store() {
  const kept = tasks.map(({ id, label, sent, cancelled }) => ({ id, label, sent, cancelled }));
  localStorage.setItem(STORED, JSON.stringify(kept.slice(0, MOST)));
  show();
}

function stored() {
  try {
    return JSON.parse(localStorage.getItem(STORED)) ?? [];
  } catch {
    return [];
  }
}

/** List what is stored, which another tab may have changed. */
function show() {
  const known = new Map(tasks.map((task) => [task.id, task]));
  tasks = stored().map((entry) => known.get(entry.id) ?? new Task(entry));
  for (const task of known.values()) {
    if (tasks.includes(task)) continue;
    task.stop();
    task.element.remove();
  }
  tasks.forEach((task, index) => {
    if (list.children[index] !== task.element) list.insertBefore(task.element, list.children[index] ?? null);
  });
  document.getElementById("empty").hidden = tasks.length > 0;
  stream();
  for (const task of tasks) if (!known.has(task.id) && !task.stream) task.refresh();
}

function forget(task) {
  const neighbour = task.element.nextElementSibling ?? task.element.previousElementSibling;
  (neighbour?.querySelector("button:not([hidden])") ?? folders).focus();
  tasks = tasks.filter((other) => other !== task);
  task.stop();
  task.element.remove();
  store();
}

/** Have streams for the newest tasks that haven't ended, while somebody can see them. */
function stream() {
  const live = document.hidden || locked ? [] : tasks.filter((task) => !task.ended);
  const streamed = live.slice(0, MOST_STREAMS);
  for (const task of tasks) {
    if (!streamed.includes(task)) task.stop();
    else if (!task.stream) task.follow();
  }
  return live.slice(MOST_STREAMS);
}

async function poll() {
  for (;;) {
    await Promise.all(stream().map((task) => task.refresh()));
    await pause(POLL);
  }
}

// --- the form ---

// The same for a second attempt, so that a request whose answer was lost doesn't send a second task.
let attempt = newAttempt();

function newAttempt() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function complain(text, isInvalid = Boolean(text)) {
  say(document.getElementById("folders-error"), text);
  folders.setAttribute("aria-invalid", String(isInvalid));
  if (isInvalid) folders.focus();
}

form.oninput = () => {
  attempt = newAttempt();
  complain("");
};

form.onsubmit = async (event) => {
  event.preventDefault();
  const chosen = folders.value.split("\n").map((line) => line.trim()).filter(Boolean);
  if (!chosen.length) return complain("Enter at least one folder.");
  complain("");
  const button = form.querySelector("button");
  button.disabled = true;
  try {
    const headers = { "Idempotency-Key": attempt };
    const response = await call("POST", "api/v1/reports", { body: { folders: chosen }, headers });
    const { task_id: id } = await response.json();
    attempt = newAttempt();
    const names = chosen.slice(0, 3).map((folder) => (folder === "." ? "FILES_DIR" : folder)).join(", ");
    const more = chosen.length > 3 ? ` and ${chosen.length - 3} more` : "";
    add({ id, label: `Report on ${names}${more}`, sent: Date.now() });
  } catch (error) {
    complain(error.message, error.status === 422);
  } finally {
    button.disabled = false;
  }
};

function add(entry) {
  tasks.unshift(new Task(entry));
  announce(`${entry.label}: sent`);
  store();
}

addEventListener("storage", ({ key }) => key === STORED && show());
document.addEventListener("visibilitychange", stream);
show();
poll();
