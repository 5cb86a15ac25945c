// The player of a call's recording: the native controls go only where this runs. Needs app.js.
"use strict";

{
  // Some browsers say it in words, and scripts learn it from nowhere else.
  const statusOf = (audio) => Number(/\b[45]\d\d\b/.exec(audio.error?.message ?? "")?.[0] ?? 0);

  function whyGone(status) {
    if (status >= 400) return `Its host answered HTTP ${status}: ${status < 500 ? "it was removed, or its link has run out" : "try again later"}.`;
    return "It was removed, its link has run out, or its host cannot be reached from here.";
  }

  function takeOver(player) {
    const audio = one("audio", player);
    const button = one(".play", player);
    const slider = one("input[type=range]", player);
    const time = one(".t", player);
    const gone = one(".gone", player.parentElement);
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
    const showGone = () => {
      one("[data-why]", gone).textContent = whyGone(statusOf(audio));
      gone.hidden = false;
      player.hidden = true;
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
    audio.addEventListener("error", showGone);
    show();
  }

  all(".player").forEach(takeOver);
}
