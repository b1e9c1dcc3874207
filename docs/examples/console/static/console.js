// The page of the incident console: what it shows comes by server-sent events, what it does goes by the REST endpoint.
"use strict";

const SILENCE_MS = 40000; // the server says something every 15 s
const AGAIN_MS = 2000;
const DEAD_LETTERS_MS = 10000;
const KEPT = "incident-console"; // in sessionStorage, over a reload
const SEVERITIES = ["critical", "high", "medium", "low"];

const api = document.body.dataset.api;
const byId = (id) => document.getElementById(id);
const incidents = new Map();
const cards = new Map();
let lastId = null;
let awaySince = null;

// -- the stream -------------------------------------------------------------------------------

let source = null;
let silence = null;

function connect() {
  if (source) source.close();
  expectNews();
  source = new EventSource(`${api}/events${lastId === null ? "" : `?last-event-id=${encodeURIComponent(lastId)}`}`);
  source.onerror = () => {
    away("The server is away. The page tries again by itself.");
    // The browser connects again by itself, except after an answer that was no stream.
    if (source.readyState === EventSource.CLOSED) {
      lastId = null; // a server may have refused the request for the length of its line
      setTimeout(connect, AGAIN_MS);
    }
  };
  on("status", (status) => (status.ok ? back(status.text) : away(`${status.text} What you see may be out of date.`)));
  on("snapshot", (all) => { incidents.clear(); take(all, "snapshot"); });
  on("incidents", (changed) => { take(changed, "changes"); announce(changed); });
  on("ping", () => {});
}

function on(kind, act) {
  source.addEventListener(kind, (event) => {
    expectNews();
    if (event.lastEventId) lastId = event.lastEventId;
    act(JSON.parse(event.data));
  });
}

function expectNews() {
  clearTimeout(silence);
  silence = setTimeout(() => { away("The server is silent. The page tries again by itself."); connect(); }, SILENCE_MS);
}

function away(text) {
  awaySince ??= Date.now();
  setStatus("away", text);
}

function back(text) {
  const gone = awaySince === null ? "" : ` It was away for ${duration((Date.now() - awaySince) / 1000)}, and is back.`;
  if (awaySince !== null) showDeadLetters();
  awaySince = null;
  setStatus("live", text + gone);
}

function setStatus(state, text) {
  const status = byId("status");
  status.dataset.state = state;
  if (status.textContent !== text) status.textContent = text;
}

// -- incidents --------------------------------------------------------------------------------

function take(changed, kind) {
  for (const incident of changed) incidents.set(incident.incident_id, incident);
  show();
  document.body.dataset.shown = kind;
}

function announce(changed) {
  const [first] = changed;
  if (!first) return;
  byId("news").textContent = changed.length === 1 ? `${named(first)}: ${facts(first)}` : `${changed.length} incidents changed.`;
}

const named = (incident) => `${incident.incident_id} ${incident.title || "(not seen opening)"}`;
const facts = (incident) =>
  [incident.state, incident.level ? `level ${incident.level}` : "", incident.assignee ? `assigned to ${incident.assignee}` : ""]
    .filter(Boolean).join(", ");

function rank(incident) {
  const severity = SEVERITIES.indexOf(incident.severity);
  return severity < 0 ? SEVERITIES.length : severity;
}

function show() {
  const all = [...incidents.values()];
  const resolved = all.filter((incident) => incident.state === "resolved").sort((a, b) => b.updated_at - a.updated_at);
  const open = all.filter((incident) => incident.state !== "resolved")
    .sort((a, b) => rank(a) - rank(b) || b.opened_at - a.opened_at || (a.incident_id < b.incident_id ? -1 : 1));
  for (const [id, card] of cards) if (!incidents.has(id)) { card.remove(); cards.delete(id); }
  list("open", open);
  list("resolved", resolved);
}

function list(name, some) {
  const parent = byId(name);
  some.forEach((incident, index) => {
    const card = filled(incident);
    if (parent.children[index] !== card) {
      const focused = card.contains(document.activeElement) ? document.activeElement : null;
      parent.insertBefore(card, parent.children[index] ?? null); // loses the focus
      if (focused) (focused.closest("[hidden]") ? card : focused).focus();
    }
  });
  byId(`${name}-count`).textContent = some.length;
  byId(`${name}-empty`).hidden = some.length > 0;
}

function filled(incident) {
  const card = cards.get(incident.incident_id) ?? made(incident);
  const part = (selector, text) => { card.querySelector(selector).textContent = text; };
  card.dataset.severity = incident.severity;
  part(".severity", incident.severity || "unknown");
  part("h3", incident.title || "(not seen opening)");
  part(".id", incident.incident_id);
  part(".type", incident.incident_type);
  part(".level", incident.level ? `level ${incident.level}` : "");
  part(".who", incident.assignee || (incident.state === "resolved" ? "" : "nobody yet"));
  showTime(card, incident);
  const isOver = incident.state === "resolved";
  if (isOver && card.querySelector(".actions").contains(document.activeElement)) card.focus();
  card.querySelector(".actions").hidden = isOver;
  return card;
}

function made(incident) {
  const card = byId("incident").content.firstElementChild.cloneNode(true);
  const id = incident.incident_id;
  card.dataset.id = id;
  for (const button of card.querySelectorAll("button")) button.setAttribute("aria-label", `${button.textContent} ${id}`);
  card.querySelector("input").setAttribute("aria-label", `Assignee of ${id}`);
  for (const action of ["escalate", "resolve"]) {
    const button = card.querySelector(`button[data-action=${action}]`);
    button.addEventListener("click", () => post(`incidents/${encodeURIComponent(id)}/${action}`, {}, button));
  }
  const form = card.querySelector("form");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (await post(`incidents/${encodeURIComponent(id)}/assign`, fields(form), form.querySelector("button"))) form.reset();
  });
  cards.set(id, card);
  return card;
}

function showTime(card, incident) {
  const time = card.querySelector("time");
  const at = incident.opened_at ?? incident.updated_at;
  time.dateTime = new Date(at * 1000).toISOString();
  time.textContent = incident.state === "resolved"
    ? `resolved after ${duration(incident.resolution_time_secs ?? 0)}`
    : `opened ${duration(Date.now() / 1000 - at)} ago`;
}

function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

// -- what the user does -----------------------------------------------------------------------

const fields = (form) => Object.fromEntries(new FormData(form));

async function post(path, body, button) {
  byId("error").textContent = "";
  button.setAttribute("aria-busy", "true"); // not disabled: that would lose the focus
  try {
    return await ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  } catch (error) {
    byId("error").textContent = error.message;
    return null;
  } finally {
    button.removeAttribute("aria-busy");
  }
}

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(`${api}/${path}`, options);
  } catch {
    throw new Error("The server cannot be reached. Look at the list before you repeat it.");
  }
  const found = await answer.json().catch(() => ({}));
  if (answer.ok) return found;
  const again = answer.headers.get("Retry-After");
  throw new Error(`${found.error ?? `The server answered ${answer.status}.`}${again ? ` Try again in ${again} s.` : ""}`);
}

byId("open-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target;
  if (await post("incidents", fields(form), form.querySelector("button"))) {
    form.reset();
    byId("title").focus();
  }
});

// -- dead letters -----------------------------------------------------------------------------

async function showDeadLetters(note = "") {
  let found;
  try {
    found = await ask("dead-letters");
  } catch (error) {
    byId("dead-note").textContent = error.message;
    return;
  }
  byId("dead-count").textContent = `${found.total}${found.more ? " or more" : ""}`;
  byId("dead-note").textContent = note || (found.total ? "" : "None.");
  byId("dead").replaceChildren(...found.groups.map(letters));
}

function letters(group) {
  const item = byId("letters").content.firstElementChild.cloneNode(true);
  item.querySelector(".what").textContent = `${group.count} × ${group.topic ?? "unknown topic"}, given up by ${group.group ?? "another program"}`;
  item.querySelector(".reason").textContent = [group.exception, group.reason].filter(Boolean).join(": ");
  const button = item.querySelector("button");
  button.setAttribute("aria-label", `Redrive ${group.count} of ${group.topic} to ${group.group}`);
  button.hidden = !(group.topic && group.group && group.exception);
  button.addEventListener("click", async () => {
    const { backend, topic, group: name, exception } = group;
    const report = await post("dead-letters/redrive", { backend, topic, group: name, exception }, button);
    if (report) await showDeadLetters(outcome(report));
  });
  return item;
}

function outcome(report) {
  const left = report.skipped + report.failed;
  return `${report.done} put back.${left ? ` ${left} left: ${report.reasons.join("; ")}.` : ""}`;
}

// -- from here on -----------------------------------------------------------------------------

function keep() {
  sessionStorage.setItem(KEPT, JSON.stringify({ lastId, incidents: [...incidents.values()] }));
}

addEventListener("pagehide", keep);

const kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "null");
if (kept && kept.lastId !== null) {
  lastId = kept.lastId;
  take(kept.incidents, "kept");
}
connect();
showDeadLetters();
setInterval(() => { if (!document.hidden && !byId("dead").contains(document.activeElement)) showDeadLetters(byId("dead-note").textContent); }, DEAD_LETTERS_MS);
setInterval(() => { for (const [id, card] of cards) showTime(card, incidents.get(id)); }, 20000);
