"use strict";
// What the widget does at Millis: everything in the address but id, k and c is metadata, as text.
const query = new URLSearchParams(location.search);
const metadata = Object.fromEntries(
  [...query].filter(([name]) => !["id", "k", "c"].includes(name)),
);
const [state, log, call, form, text, hangUp] = ["state", "log", "call", "say", "text", "hang-up"]
  .map((id) => document.getElementById(id));
let socket;

function show(role, words) {
  const line = document.createElement("p");
  line.className = role;
  line.textContent = words;
  log.append(line);
  line.scrollIntoView({block: "nearest"});
}

function send(method, data) {
  socket.send(JSON.stringify({method, data}));
}

const heard = {
  onready: () => { state.textContent = "Talking."; form.hidden = false; text.focus(); },
  ontranscript: (words, how) => { if (how?.is_final) show("user", words); },
  onresponsetext: (words, how) => { if (how?.is_final) show("assistant", words); },
  onfunction: (_, called) => show("function", `${called.name} ${JSON.stringify(called.params)}`),
};

call.addEventListener("click", () => {
  log.replaceChildren();
  call.hidden = true;
  state.textContent = "Calling.";
  const address = new URL("../millis?from=widget", location.href);
  address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  socket = new WebSocket(address);
  socket.binaryType = "arraybuffer";
  socket.addEventListener("open", () => send("initiate", {
    agent: {agent_id: query.get("id") ?? undefined},
    public_key: query.get("k") ?? "",
    metadata,
  }));
  socket.addEventListener("message", ({data}) => {
    if (typeof data !== "string") return; // a tone
    const {method, data: words, payload} = JSON.parse(data);
    heard[method]?.(words, payload);
  });
  socket.addEventListener("close", ({reason}) => {
    state.textContent = reason ? `Ended: ${reason}` : "Ended.";
    form.hidden = true;
    call.hidden = false;
  });
});

form.addEventListener("submit", (event) => {
  event.preventDefault();
  send("say", text.value);
  text.value = "";
});
hangUp.addEventListener("click", () => send("hang_up", "user-ended"));
