// Progressive enhancement only: every page works with this file blocked.
"use strict";

const root = document.documentElement;
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const one = (selector, within = document) => within.querySelector(selector);

const YEAR_S = 31536000;
const setCookie = (name, value) => {
  document.cookie = `${name}=${value};path=/;max-age=${YEAR_S};samesite=lax`;
};

const clock = (seconds) => {
  const whole = Math.max(0, Math.floor(seconds));
  const second = String(whole % 60).padStart(2, "0");
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes}:${second}`;
  return `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")}:${second}`;
};

// As `until` of formats.py says it.
const until = (seconds) => {
  const whole = Math.floor(seconds);
  if (whole < 1) return "now";
  if (whole < 120) return `in ${whole} s`;
  if (whole < 7200) return `in ${Math.floor(whole / 60)} min`;
  if (whole < 172800) return `in ${Math.floor(whole / 3600)} h`;
  return `in ${Math.floor(whole / 86400)} d`;
};

const announce = (text, isSeen = false) => {
  const status = one("#status");
  if (!status) return;
  status.textContent = "";
  status.className = isSeen ? "toast" : "vh";
  setTimeout(() => { status.textContent = text; }, 30);
  if (isSeen) setTimeout(() => { status.className = "vh"; }, 5000);
};

const setIcon = (use, name) => {
  use.setAttribute("href", use.getAttribute("href").replace(/#.*/, `#${name}`));
};

// The other theme than the system's, then the system's own, then automatic again.
// The server reads the theme's cookie, so the next page does not flash.
function toggleTheme() {
  const systemIsDark = matchMedia("(prefers-color-scheme: dark)").matches;
  const order = systemIsDark ? ["auto", "light", "dark"] : ["auto", "dark", "light"];
  root.dataset.theme = order[(order.indexOf(root.dataset.theme) + 1) % 3];
  setCookie("mh_theme", root.dataset.theme);
  announce(`Theme: ${root.dataset.theme === "auto" ? "automatic" : root.dataset.theme}`);
}

// Of a conversation each line is one of the text: names are apart from words only by style.
function textOf(node) {
  if (!node?.matches(".chat")) return node?.textContent ?? "";
  return [...node.children].map((line) => line.textContent.trim().replace(/\s+/g, " ")).join("\n");
}

// Browsers have no clipboard for a page over plain HTTP, but still their old command.
async function write(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const field = document.createElement("textarea");
  field.value = text;
  field.className = "vh";
  (one("[popover]:popover-open") ?? document.body).append(field);
  field.select();
  const isDone = document.execCommand("copy");
  field.remove();
  if (!isDone) throw new Error("not copied");
}

async function copy(button) {
  const { copy: given, copyFrom } = button.dataset;
  try {
    await write(button.href ?? given ?? textOf(one(copyFrom)));
  } catch {
    announce("Copying failed", true);
    return;
  }
  announce("Copied");
  const use = one("use", button);
  setIcon(use, "check");
  setTimeout(() => setIcon(use, "copy"), 1200);
}

// Clocks count from seconds the server sent: the two machines' clocks may differ.
function runClocks() {
  const starts = new WeakMap();
  const tick = () => {
    const now_s = performance.now() / 1000;
    for (const node of all("[data-elapsed]")) {
      if (!starts.has(node)) starts.set(node, now_s - Number(node.dataset.elapsed));
      node.textContent = clock(now_s - starts.get(node));
    }
    for (const node of all("[data-due]")) {
      if (!starts.has(node)) starts.set(node, now_s + Number(node.dataset.due));
      node.textContent = node.textContent.replace(/\bin \d+ \w+|\bnow\b/, until(starts.get(node) - now_s));
    }
  };
  tick();
  setInterval(tick, 1000);
}

// What is left empty stays out of the address; a period takes the place of dates.
function submitFilters(form) {
  form.addEventListener("change", ({ target }) => {
    if (!target.matches("[data-submit]")) return;
    for (const date of all("[name=from], [name=to]", form)) date.value = "";
    form.requestSubmit();
  });
  // What was ticked and not applied is gone when its popover closes.
  for (const popover of all("[popover]", form)) {
    popover.addEventListener("toggle", ({ newState }) => {
      if (newState === "open") return;
      for (const field of all("input", popover)) [field.checked, field.value] = [field.defaultChecked, field.defaultValue];
      for (const option of all("option", popover)) option.selected = option.defaultSelected;
    });
  }
  form.addEventListener("formdata", ({ formData }) => {
    for (const [name, value] of [...formData]) if (!value) formData.delete(name);
  });
}

// The old page stays until the new one is there, and is dimmed if that takes its time.
function showWaiting() {
  const main = one("main");
  let timer;
  const settle = () => {
    clearTimeout(timer);
    main.classList.remove("busy");
    main.removeAttribute("aria-busy");
  };
  document.addEventListener("submit", ({ target }) => {
    if (target.method !== "get") return;
    timer = setTimeout(() => {
      main.classList.add("busy");
      main.setAttribute("aria-busy", "true");
    }, 300);
  });
  addEventListener("pageshow", settle);
}

// Browsers know the zones there are, and the one they are in, which is the likeliest wish.
function offerZones(field) {
  const own = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const select = document.createElement("select");
  const offered = new Set([field.value, own, "UTC", ...(Intl.supportedValuesOf?.("timeZone") ?? [])]);
  for (const zone of offered) select.add(new Option(zone === own ? `${own} (this browser)` : zone, zone));
  select.id = field.id;
  select.name = field.name;
  select.addEventListener("change", () => select.form.requestSubmit());
  if (field.value !== own) {
    const button = document.createElement("button");
    Object.assign(button, { className: "btn sm", name: "zone", value: own, textContent: `Use ${own} (this browser)` });
    button.addEventListener("click", () => { select.disabled = true; });
    field.after(button);
  }
  field.replaceWith(select);
}

const KEYS_OFF = /(?:^|; )mh_keys=off/;
const shortcutsAreOn = () => !KEYS_OFF.test(document.cookie);
const isTyping = ({ target }) =>
  /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName) || target.isContentEditable;

function moveRow(step) {
  const rows = all("a.row");
  const next = rows.indexOf(document.activeElement) + step;
  rows[Math.max(0, Math.min(rows.length - 1, next))]?.focus();
}

const shortcuts = {
  "/": () => { one("#q")?.focus(); one("#q")?.select(); },
  j: () => moveRow(1),
  k: () => moveRow(-1),
  "[": () => one("[rel=prev][href]")?.click(),
  "]": () => one("[rel=next][href]")?.click(),
  t: toggleTheme,
  "?": () => one("#keys")?.showModal(),
};

function listenToKeys() {
  let goPressedAt = -Infinity;
  document.addEventListener("keydown", (event) => {
    // A popover gives the focus back to its button.
    const isInside = event.target.closest?.("[popover], dialog");
    if (event.key === "Escape" && isTyping(event) && !isInside) event.target.blur();
    if (isTyping(event) || event.metaKey || event.ctrlKey || event.altKey) return;
    if (!shortcutsAreOn() || one("dialog[open], [popover]:popover-open")) return;
    const isGo = performance.now() - goPressedAt < 900;
    goPressedAt = event.key === "g" ? performance.now() : -Infinity;
    const run = isGo
      ? () => one(`[data-go="${CSS.escape(event.key)}"]`)?.click()
      : shortcuts[event.key];
    if (!run || event.key === "g") return;
    event.preventDefault();
    run();
  });
  const toggle = one("[data-keys-toggle]");
  if (!toggle) return;
  toggle.checked = shortcutsAreOn();
  toggle.addEventListener("change", () => setCookie("mh_keys", toggle.checked ? "on" : "off"));
}

root.classList.add("js");
document.addEventListener("click", (event) => {
  if (event.target.closest("[data-theme-toggle]")) toggleTheme();
  // Shortcuts that are off are turned on again in there.
  if (event.target.closest("[data-keys-open]")) one("#keys").showModal();
  const button = event.target.closest("[data-copy], [data-copy-from], [data-copy-link]");
  if (!button || (button.href && (event.ctrlKey || event.metaKey || event.shiftKey))) return;
  event.preventDefault();
  copy(button);
});
runClocks();
// Tabs scroll sideways on a telephone.
all(".tabs [aria-current]").forEach((tab) => {
  const tabs = tab.closest(".tabs");
  tabs.scrollLeft = tab.offsetLeft - tabs.offsetLeft - (tabs.clientWidth - tab.clientWidth) / 2;
});
all("[data-filters]").forEach(submitFilters);
all("[data-zones]").forEach(offerZones);
showWaiting();
listenToKeys();
