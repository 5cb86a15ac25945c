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

const announce = (text) => {
  const status = one("#status");
  if (!status) return;
  status.textContent = "";
  setTimeout(() => { status.textContent = text; }, 30);
};

const setIcon = (use, name) => {
  use.setAttribute("href", use.getAttribute("href").replace(/#.*/, `#${name}`));
};

// The server reads the theme's cookie, so the next page does not flash.
function toggleTheme() {
  const systemIsDark = matchMedia("(prefers-color-scheme: dark)").matches;
  const chosen = root.dataset.theme;
  const isDark = chosen === "dark" || (chosen !== "light" && systemIsDark);
  root.dataset.theme = isDark ? "light" : "dark";
  setCookie("mh_theme", root.dataset.theme);
}

async function copy(button) {
  const text = button.dataset.copy ?? one(button.dataset.copyFrom)?.innerText ?? "";
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    announce("Copying failed");
    return;
  }
  announce("Copied");
  const use = one("use", button);
  setIcon(use, "check");
  setTimeout(() => setIcon(use, "copy"), 1200);
}

// Clocks count from seconds the server sent: the two machines' clocks may differ.
function runClocks() {
  const clocks = all("[data-elapsed]").map((node) => [node, Number(node.dataset.elapsed)]);
  if (!clocks.length) return;
  const start = performance.now();
  setInterval(() => {
    const passed = (performance.now() - start) / 1000;
    for (const [node, elapsed] of clocks) node.textContent = clock(elapsed + passed);
  }, 1000);
}

// A filter applies when it is chosen, and leaves its default out of the address.
function submitFilters(form) {
  form.addEventListener("change", (event) => {
    if (event.target.matches("select")) form.requestSubmit();
  });
  form.addEventListener("formdata", ({ formData }) => {
    for (const [name, value] of [...formData]) if (!value) formData.delete(name);
  });
}

// The native controls go only where this runs.
function takeOverPlayer(player) {
  const audio = one("audio", player);
  const button = one(".play", player);
  const slider = one("input[type=range]", player);
  const time = one(".t", player);
  const length = () => (Number.isFinite(audio.duration) ? audio.duration : Number(player.dataset.duration));

  const show = () => {
    const at = audio.currentTime;
    slider.max = length();
    slider.value = at;
    slider.style.setProperty("--p", `${length() ? (100 * at) / length() : 0}%`);
    time.textContent = `${clock(at)} / ${clock(length())}`;
    slider.setAttribute("aria-valuetext", time.textContent);
  };
  const showState = () => {
    setIcon(one("use", button), audio.paused ? "play" : "pause");
    button.setAttribute("aria-label", audio.paused ? "Play recording" : "Pause recording");
  };

  audio.removeAttribute("controls");
  audio.hidden = true;
  for (const control of all("[data-player]", player)) control.hidden = false;
  button.addEventListener("click", () => {
    if (audio.paused) audio.play().catch(() => {});
    else audio.pause();
  });
  slider.addEventListener("input", () => { audio.currentTime = Number(slider.value); });
  one("select", player).addEventListener("change", (event) => {
    audio.playbackRate = Number(event.target.value);
  });
  for (const event of ["timeupdate", "loadedmetadata"]) audio.addEventListener(event, show);
  for (const event of ["play", "pause"]) audio.addEventListener(event, showState);
  audio.addEventListener("error", () => { one(".gone", player).hidden = false; });
  show();
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
};

function listenToKeys() {
  let goPressedAt = -Infinity;
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && isTyping(event)) event.target.blur();
    if (isTyping(event) || event.metaKey || event.ctrlKey || event.altKey) return;
    // The dialog stays in reach with shortcuts off: it is where they are turned on again.
    if (event.key === "?") {
      one("#keys")?.showModal();
      return;
    }
    if (!shortcutsAreOn() || one("dialog[open]")) return;
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
  const button = event.target.closest("[data-copy], [data-copy-from]");
  if (button) copy(button);
});
runClocks();
all("[data-filters]").forEach(submitFilters);
all(".player").forEach(takeOverPlayer);
listenToKeys();
