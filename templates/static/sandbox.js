// The sandbox: forms without leaving the page, and the call as it goes on. Without this file every
// form works, and a link looks again.
"use strict";

const LIVE = ["#talk", "#inspect"];
let poll;
let shown = 0; // how often the page was renewed

// What was said stays where it is, so that a screen reader is told of the new lines only.
function keepLines(old, fresh) {
  const before = [...old.children];
  const after = [...fresh.children];
  const isSame = before.every((line, index) => line.textContent === after[index]?.textContent);
  if (!isSame) return false;
  before.forEach((line, index) => { line.className = after[index].className; });
  old.append(...after.slice(before.length));
  fresh.replaceWith(old);
  return true;
}

// What somebody is typing, choosing or has unfolded outlives an update.
function keepWork(old, fresh) {
  for (const field of all("input, select", old)) {
    const same = field.id && one(`#${CSS.escape(field.id)}`, fresh);
    if (same) same.value = field.value;
  }
  const opened = all("details", old).map((each) => each.open);
  all("details", fresh).forEach((each, index) => { if (opened[index]) each.open = true; });
}

function show(page, { keeps }) {
  shown += 1;
  const focused = document.activeElement?.id;
  for (const selector of LIVE) {
    const old = one(selector);
    const fresh = one(selector, page);
    if (!old || !fresh) continue;
    if (keeps) keepWork(old, fresh);
    const [oldLog, log] = [one("#log", old), one("#log", fresh)];
    if (keeps && oldLog && log) keepLines(oldLog, log);
    old.replaceWith(fresh);
  }
  if (one("#talk").dataset.go) one("#go").textContent = one("#talk").dataset.go;
  const log = one("#log");
  if (log) log.scrollTop = log.scrollHeight;
  const back = focused && document.getElementById(focused);
  (back || (keeps ? null : one("#text")))?.focus({ preventScroll: true });
  look();
}

// Slower and slower where nothing changes; not at all in a tab that nobody sees.
function look(wait_ms) {
  clearTimeout(poll);
  const { poll: usual, fragment } = one("#talk").dataset;
  if (!usual) return;
  const next_ms = wait_ms ?? Number(usual);
  poll = setTimeout(async () => {
    if (document.hidden) return look(next_ms);
    const asked = shown;
    const response = await fetch(fragment).catch(() => null);
    if (asked !== shown) return; // a form has renewed the page meanwhile: this answer is older
    if (!response?.ok || response.redirected) return look(Math.min(next_ms * 2, 30000));
    const before = one("#talk").textContent + one("#inspect").textContent;
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    if (asked !== shown) return;
    const after = LIVE.map((selector) => one(selector, page)?.textContent).join("");
    if (clean(before) !== clean(after)) show(page, { keeps: true });
    else look(Math.min(next_ms * 1.5, 10000));
  }, next_ms);
}

const clean = (text) => text.replace(/\s+|\d+:\d\d/g, "");

async function send(form, submitter) {
  const body = new URLSearchParams(new FormData(form, submitter));
  const response = await fetch(form.action, { method: "POST", body });
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  const isStart = form.id === "start";
  // A draft that is wrong is explained where it was typed.
  if (isStart && response.status === 422) return explain(page);
  // Signed out, for one: the answer is a page of its own.
  if (!response.ok || !one("#talk", page)) return form.submit();
  // The address is the page's state, and each call has one.
  if (response.url !== location.href) history[isStart ? "pushState" : "replaceState"](null, "", response.url);
  if (isStart) one(".sandbox > form")?.replaceWith(one(".sandbox > form", page));
  clearTimeout(poll);
  if (form.id === "say-form" || form.elements.params) form.reset();
  show(page, { keeps: !isStart });
  showWay();
  if (isStart) one("#talk").scrollIntoView({ block: "start" });
}

function explain(page) {
  one("#start").replaceWith(one("#start", page));
  const refusal = one("#talk .alert", page);
  if (refusal) one("#talk > div").prepend(refusal);
  showWay();
  const wrong = one("#start [aria-invalid]") ?? one("#start [role=alert]") ?? refusal;
  wrong?.focus();
  wrong?.scrollIntoView({ block: "center" });
}

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (!form.matches("[data-sandbox]") || event.submitter?.matches("[data-preview]")) return;
  event.preventDefault();
  if (form.ariaBusy === "true") return;
  form.ariaBusy = "true";
  send(form, event.submitter)
    .catch(() => announce("The service does not answer"))
    .finally(() => { form.ariaBusy = null; });
});

// Values whose names sound like a secret are not for an address.
const SECRET = /key|token|secret|password|auth|credential/i;

function draftAddress(form) {
  const address = new URL(form.dataset.address, location.href);
  for (const [name, value] of new FormData(form)) {
    const number = name.match(/^value(\d+)$/)?.[1];
    const isSecret = number && SECRET.test(form.elements[`key${number}`].value);
    if (value && !isSecret) address.searchParams.set(name, value);
  }
  return address.href;
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-copy-draft]");
  if (button) button.dataset.copy = draftAddress(button.form);
  if (event.target.closest("[data-add-row]")) addRow();
}, { capture: true });

function addRow() {
  const rows = one("#rows");
  const number = rows.children.length + 1;
  if (number > Number(rows.dataset.most)) return announce("There is no room for more keys");
  const row = rows.lastElementChild.cloneNode(true);
  one(".row-note", row)?.remove();
  for (const field of all("input", row)) {
    field.name = field.name.replace(/\d+$/, number);
    field.ariaLabel = field.ariaLabel.replace(/\d+/, number);
    if (field.type === "checkbox") field.checked = false;
    else field.value = "";
  }
  rows.append(row);
  one("input", row).focus();
}

// Numbers belong to calls over the phone.
function showWay() {
  const way = one("[name=way]:checked")?.value;
  for (const part of all("[data-ways]")) part.hidden = !part.dataset.ways.split(" ").includes(way);
  // Who calls whom: the team's number is on the other side then.
  const phones = one("[data-direction]");
  const direction = way === "inbound" ? "inbound" : way === "outbound" ? "outbound" : null;
  if (!direction || direction === phones.dataset.direction) return;
  phones.dataset.direction = direction;
  const [from, to] = [one("#from_phone"), one("#to_phone")];
  [from.value, to.value] = [to.value, from.value];
}

// What the same call would be elsewhere follows what is typed.
async function preview(form) {
  const response = await fetch(draftAddress(form)).catch(() => null);
  if (!response?.ok || response.redirected) return;
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  for (const selector of ["#snippet", "#include-hint"]) {
    const [old, fresh] = [one(selector), one(selector, page)];
    if (!old || !fresh) continue;
    if ("open" in fresh) fresh.open = old.open;
    old.replaceWith(fresh);
  }
  const rows = all("[data-row]", page);
  all("[data-row]").forEach((row, index) => {
    one(".row-note", row)?.remove();
    const note = rows[index] && one(".row-note", rows[index]);
    if (note) row.append(note);
  });
}

document.addEventListener("change", ({ target }) => {
  if (target.name === "way") showWay();
  if (target.form?.id === "start") preview(target.form);
  if (target.id === "role") {
    one("#text").placeholder = `Say something as the ${target.selectedOptions[0].text.toLowerCase()}`;
  }
});
addEventListener("popstate", () => location.reload());
showWay();
look();
