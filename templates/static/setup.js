// The setup page: copying what is hidden, and waiting for a test.
"use strict";

// A button that copies a secret asks for it as its form does, and shows it to nobody but the
// clipboard. What is not the page with the secret, such as the question for the password, is shown.
async function copyRevealed(button) {
  const { form } = button;
  const response = await fetch(form.action, { method: "POST", body: new URLSearchParams(new FormData(form)) });
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  const shown = page.querySelector(button.dataset.copyRevealed);
  if (!response.ok || response.redirected || !shown) {
    form.submit();
    return;
  }
  button.dataset.copy = shown.textContent;
  await copy(button);
  delete button.dataset.copy;
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-copy-revealed]");
  if (!button) return;
  event.preventDefault();
  copyRevealed(button).catch(() => announce("Copying failed"));
});

// A test may take ten seconds, and one is enough.
for (const form of document.querySelectorAll("[data-waits]")) {
  form.addEventListener("submit", (event) => {
    if (form.ariaBusy === "true") event.preventDefault();
    form.ariaBusy = "true";
    announce("Sending the test");
  });
}
// Coming back by the browser's button finds the page as it was left.
addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("[data-waits]")) form.ariaBusy = null;
});
