// Lets a page follow what arrives: one stream of events while its tab is seen. Without it, or where
// the stream does not come, the page stands still and works.
//
// Its own script element says what to follow: `data-stream`; `data-fragment`, elements that take the
// place of those with their ids; `data-kinds`, the events that is asked for at; and on the page of
// one call `data-session`, whose own events renew the parts marked `data-live-region`.
"use strict";

{
  const { stream, fragment, kinds = "", session } = document.currentScript.dataset;
  const ALL_KINDS = ["refresh", "started", "function", "ended", "unparsed", "runs", "rejected"];
  const OWN_KINDS = ["refresh", "function", "ended", "runs"];
  const LOST_AFTER_MS = 3000;
  const OFF_AFTER_MS = 60000;
  const BUSY_MS = 2000;
  // Some things only time changes: a call whose end is overdue, and how long ago something was.
  const ANYWAY_MS = 300000;

  const page = document.documentElement;
  const shown = new Map();
  let source = null;
  let timers = [];
  let isFirst = true;
  let padded_px = 0;

  const later = (delay_ms, run) => timers.push(setTimeout(run, delay_ms));
  const forgetTimers = () => { timers.forEach(clearTimeout); timers = []; };

  // What is above the middle of the window grows upwards, so that what is below stays in its place.
  // A column moves nothing that is beside it.
  function withoutMoving(region, change) {
    const { bottom, height } = region.getBoundingClientRect();
    const from_px = scrollY;
    change();
    const isAcross = region.offsetWidth > 0.8 * document.getElementById("main").clientWidth;
    if (!isAcross || !region.closest("main") || bottom > innerHeight / 2) return;
    let grown_px = region.getBoundingClientRect().bottom + scrollY - bottom - from_px;
    if (from_px + grown_px < 0) {
      region.style.minHeight = `${height}px`;
      grown_px = 0;
    }
    const top = from_px + grown_px;
    const missing_px = Math.ceil(top + innerHeight - page.scrollHeight);
    padded_px += Math.max(0, missing_px);
    if (missing_px > 0) page.style.paddingBlockEnd = `${padded_px}px`;
    scrollTo({ top, behavior: "instant" });
  }

  // Each disclosure by the nearest id before it, and its place after that.
  function disclosures(region) {
    const found = new Map();
    let key = "";
    let place = 0;
    for (const node of region.querySelectorAll("[id], details")) {
      if (node.id) [key, place] = [node.id, 0];
      if (node.localName === "details") found.set(`${key} ${place++}`, node);
    }
    return found;
  }

  const isInUse = (region) =>
    region.contains(document.activeElement) || region.querySelector(":popover-open")
    || (!getSelection().isCollapsed && getSelection().containsNode(region, true));

  function replace(region, fresh) {
    const html = fresh.outerHTML;
    if (html === (shown.get(region.id) ?? region.outerHTML)) return;
    if (isInUse(region)) {
      later(BUSY_MS, () => replace(region, fresh));
      return;
    }
    shown.set(region.id, html);
    const were = disclosures(region);
    for (const [key, node] of disclosures(fresh)) if (were.has(key)) node.open = were.get(key).open;
    withoutMoving(region, () => {
      for (const { name, value } of fresh.attributes) region.setAttribute(name, value);
      region.toggleAttribute("hidden", fresh.hidden);
      region.replaceChildren(...fresh.childNodes);
    });
  }

  async function parsed(address) {
    const response = await fetch(address, { headers: { Accept: "text/html" } });
    if (response.redirected) signedOut();
    if (response.redirected || !response.ok) throw new Error(response.statusText);
    return new DOMParser().parseFromString(await response.text(), "text/html");
  }

  // One question at a time; what happens meanwhile is asked about afterwards.
  function asker(ask) {
    let isAsking = false;
    let isWanted = false;
    return async () => {
      isWanted = true;
      if (isAsking) return;
      isAsking = true;
      while (isWanted) {
        isWanted = false;
        try { await ask(); } catch { /* the next event asks again */ }
      }
      isAsking = false;
    };
  }

  const renewFragment = asker(async () => {
    for (const fresh of [...(await parsed(fragment)).body.children]) {
      const region = document.getElementById(fresh.id);
      if (region) replace(region, fresh);
    }
  });

  const renewRegions = asker(async () => {
    if (!document.querySelector("[data-live-region]")) return;
    const fresh = await parsed(location.href);
    for (const region of document.querySelectorAll("[data-live-region]")) {
      const renewed = fresh.getElementById(region.id);
      if (renewed) replace(region, renewed);
    }
  });

  function hear(kind, event) {
    const { session_id } = JSON.parse(event.data);
    const isOwn = session && (!session_id || session_id === session);
    const isRefresh = kind === "refresh";
    if (isRefresh || kinds.split(" ").includes(kind)) renewFragment();
    // A page that was just made is asked for again only if it says that something goes on.
    const isSettled = isFirst && !document.querySelector('[data-live-region="open"]');
    if (isOwn && OWN_KINDS.includes(kind) && !(isRefresh && isSettled)) renewRegions();
    if (isRefresh) isFirst = false;
  }

  function say(state) {
    page.dataset.live = state;
  }

  function close() {
    source?.close();
    source = null;
    forgetTimers();
  }

  function stop() {
    close();
    say("off");
  }

  function signedOut() {
    stop();
    const news = document.getElementById("news");
    const link = Object.assign(document.createElement("a"), { href: location.href, className: "btn primary" });
    link.textContent = "You are signed out. Sign in";
    news?.replaceChildren(link);
  }

  function lost() {
    if (source.readyState === EventSource.CLOSED) {
      stop();
    } else if (!timers.length) {
      later(LOST_AFTER_MS, () => say("lost"));
      later(OFF_AFTER_MS, stop);
    }
  }

  function open() {
    if (source || document.hidden) return;
    source = new EventSource(stream);
    source.addEventListener("open", () => { forgetTimers(); say("on"); });
    source.addEventListener("error", lost);
    source.addEventListener("signed-out", signedOut);
    for (const kind of ALL_KINDS) source.addEventListener(kind, (event) => hear(kind, event));
  }

  // The browser's own way to keep things in place would come on top of ours.
  page.style.overflowAnchor = "none";
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  addEventListener("pagehide", close);
  addEventListener("pageshow", open);
  setInterval(() => { if (source) renewFragment(); }, ANYWAY_MS);
  open();
}
