// Shows queues, workers and dead letters, and replays or drops a dead letter.

import { call, copyOf, duration, locked, pause, say } from "./common.js";

const EVERY = 5000;
const OPS = "api/v1/ops";
const STORY = [
  ["id", "Id"],
  ["queue", "Queue"],
  ["failed_at", "Failed at"],
  ["retries", "Retries"],
  ["deliveries", "Deliveries"],
  ["correlation_id", "Correlation id"],
  ["replayed_from", "Replayed from"],
  ["args", "Arguments"],
  ["kwargs", "Named arguments"],
  ["body", "Body"],
  ["bytes", "Bytes of the message"],
  ["error", "Error"],
  ["traceback", "Traceback"],
  ["options", "Options"],
];
const LONG = new Set(["args", "kwargs", "body", "error", "traceback", "options"]);

const auto = document.getElementById("auto");
const list = document.getElementById("letters");

// --- dead letters ---

/** A dead letter in the list. It stays the same element while it is there, so that it keeps focus and selection. */
class Letter {
  constructor(record) {
    this.id = record.id;
    this.path = `${OPS}/dead-letters/${encodeURIComponent(record.id)}`;
    this.element = copyOf("letter");
    for (const name of ["letter", "title", "badge", "message", "hint", "story", "error", "replay", "drop"]) {
      this[name] = this.element.querySelector(`.${name}`);
    }
    this.letter.ontoggle = () => this.letter.open && this.show();
    this.replay.onclick = () => this.ask("Replay", `This sends ${this.name} again, under its old id, and removes the dead letter.`, "POST", "/replay");
    this.drop.onclick = () => this.ask("Drop", `This removes the dead letter of ${this.name} for good. The task does not run again.`, "DELETE", "");
    this.update(record);
  }

  update(record) {
    const changed = this.record?.time !== record.time;
    this.record = record;
    this.name = record.task ?? "Unreadable message";
    say(this.title, this.name);
    say(this.badge, record.reason);
    say(this.message, String(record.error ?? "").split("\n", 1)[0]);
    say(this.hint, `${duration(Date.now() / 1000 - record.time)} ago · queue ${record.queue || "unknown"}`);
    if (changed && this.letter.open) this.show();
  }

  /** Show all that is known of it. */
  async show() {
    try {
      this.story.replaceChildren(storyOf(await (await call("GET", this.path)).json()));
      // The end of a traceback says most.
      for (const block of this.story.querySelectorAll("[data-field=traceback]")) block.scrollTop = block.scrollHeight;
      say(this.error, "");
    } catch (error) {
      say(this.error, error.message);
    }
  }

  /** Replay or drop it, after a confirmation. */
  async ask(verb, text, method, suffix) {
    if (!(await confirmed(`${verb} this dead letter?`, text, verb))) return;
    this.replay.disabled = this.drop.disabled = true;
    try {
      await call(method, this.path + suffix);
      announce(`${this.name}: ${verb === "Drop" ? "dropped" : "replayed"}`);
      await refresh();
      if (!this.element.isConnected) document.getElementById("letters-heading").focus();
    } catch (error) {
      // Meanwhile, a refresh may have removed it from the list.
      if (this.element.isConnected) say(this.error, `${verb} failed: ${error.message}`);
      else complain(`${verb} failed: ${error.message}`);
    } finally {
      this.replay.disabled = this.drop.disabled = false;
    }
  }
}

function storyOf(record) {
  const parts = document.createElement("dl");
  for (const [field, name] of STORY) {
    const value = record[field];
    if (field === "error" && !String(value).includes("\n")) continue; // the summary has it
    if (value == null || value === "" || (typeof value === "object" && !Object.keys(value).length)) continue;
    const term = document.createElement("dt");
    const text = document.createElement("dd");
    term.textContent = name;
    const content = typeof value === "object" ? JSON.stringify(value, null, 2) : String(value);
    if (LONG.has(field)) {
      const block = text.appendChild(document.createElement("pre"));
      block.dataset.field = field;
      block.textContent = content.trimEnd();
      block.tabIndex = 0; // so that the keyboard can scroll it
      block.setAttribute("role", "group");
      block.setAttribute("aria-label", name);
    } else text.textContent = content;
    parts.append(term, text);
  }
  return parts;
}

function confirmed(title, text, verb) {
  const dialog = document.getElementById("confirm");
  document.getElementById("confirm-heading").textContent = title;
  document.getElementById("confirm-text").textContent = text;
  const ok = document.getElementById("confirm-ok");
  ok.textContent = verb;
  ok.classList.toggle("danger", verb === "Drop");
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => resolve(dialog.returnValue === "ok");
  });
}

const letters = new Map();

function showLetters(records, total) {
  const there = new Set(records.map(({ id }) => id));
  for (const [id, letter] of letters) {
    if (there.has(id)) continue;
    letter.element.remove();
    letters.delete(id);
  }
  let next = list.firstElementChild;
  for (const record of records) {
    let letter = letters.get(record.id);
    if (letter) letter.update(record);
    else letters.set(record.id, (letter = new Letter(record)));
    // Moving an element takes its focus away.
    if (letter.element === next) next = next.nextElementSibling;
    else list.insertBefore(letter.element, next);
  }
  say(document.getElementById("count"), countOf(records.length, total));
}

function countOf(shown, total) {
  if (total === null) return "Here they are only logged, because results are not in Redis.";
  if (total === 0) return "There are none.";
  return shown < total ? `The newest ${shown} of ${total}.` : `${total}, newest first.`;
}

// --- tables ---

/** Fill a table; each row is the cells of it. */
function fill(id, rows) {
  const body = document.getElementById(id);
  body.replaceChildren(
    ...rows.map((cells) => {
      const row = document.createElement("tr");
      cells.forEach((text, index) => {
        const cell = row.appendChild(document.createElement(index ? "td" : "th"));
        if (index) cell.className = "number";
        else cell.scope = "row";
        cell.textContent = text ?? "–";
      });
      return row;
    }),
  );
}

// --- refresh ---

function announce(text) {
  document.getElementById("status").textContent = text;
}

function complain(text) {
  const problem = document.getElementById("problem");
  problem.hidden = !text;
  say(problem, text);
}

async function refresh(background = false) {
  try {
    const found = await (await call("GET", OPS, { background })).json();
    fill("queues", (found.queues ?? []).map(({ name, length, oldest_age_seconds: age }) => [name, length, age == null ? null : duration(age)]));
    document.getElementById("no-queues").hidden = found.queues != null;
    fill("workers", found.workers.map(({ name, active }) => [name, active]));
    document.getElementById("no-workers").hidden = found.workers.length > 0;
    showLetters(found.dead_letters, found.dead_letters_total);
    say(document.getElementById("updated"), `Updated at ${new Date().toLocaleTimeString()}`);
    complain("");
  } catch (error) {
    complain(error.message);
  }
}

document.getElementById("refresh").onclick = () => refresh();
document.addEventListener("visibilitychange", () => auto.checked && !document.hidden && !locked && refresh(true));

await refresh(true);
for (;;) {
  await pause(EVERY);
  if (auto.checked && !document.hidden && !locked) await refresh(true);
}
