// The operator's page: asks for the view again and again, and sends what its buttons say.
"use strict";

const PERIOD = 2000;
const STORED = "fleetune-token";
const at = (id) => document.getElementById(id);

// The token stands in the address behind the #, which browsers do not send. It leaves the address,
// so that it is in no screenshot and no bookmark.
let token = decodeURIComponent(location.hash.slice(1)) || sessionStorage.getItem(STORED) || "";
history.replaceState(null, "", location.pathname);

function say(text, problem = false) {
  at("said").textContent = text;
  at("said").classList.toggle("problem", problem);
}

/// Asks the server; throws with the server's words when it refuses.
async function ask(path, options = {}) {
  const headers = { Authorization: `Bearer ${token}` };
  if (options.body) headers["Content-Type"] = "application/json";
  const response = await fetch(path, { ...options, headers });
  if (response.status === 401) {
    signOut();
    throw new Error("The token is not the server's.");
  }
  if (!response.ok) {
    const told = await response.json().catch(() => ({}));
    throw new Error(told.error || `The server answered ${response.status}.`);
  }
  return response;
}

function signOut() {
  token = "";
  sessionStorage.removeItem(STORED);
  at("view").replaceChildren();
  at("login").hidden = false;
  at("invite").hidden = true;
}

let shown = "";
let lost = false;

async function refresh() {
  if (!token) return signOut();
  try {
    const html = await (await ask("/view")).text();
    sessionStorage.setItem(STORED, token);
    at("login").hidden = true;
    at("invite").hidden = false;
    if (lost) say("");
    lost = false;
    // The same content is left in place, with its selection and scroll positions.
    if (html !== shown) {
      at("view").innerHTML = html;
      shown = html;
      listFederations();
    }
  } catch (error) {
    lost = true;
    say(error instanceof TypeError ? "The server does not answer." : error.message, true);
  }
}

function listFederations() {
  const known = new Set(Array.from(at("federation").options, (option) => option.value));
  for (const section of document.querySelectorAll("[data-federation]")) {
    const name = section.dataset.federation;
    if (!known.has(name)) at("federation").add(new Option(name, name));
  }
}

/// Sends an order and shows what came of it.
async function send(path, body, done) {
  try {
    const response = await ask(path, { method: "POST", body: body && JSON.stringify(body) });
    done(await response.json());
  } catch (error) {
    say(error.message, true);
  }
  await refresh();
}

at("view").addEventListener("click", (event) => {
  const button = event.target.closest("button[data-post]");
  if (!button) return;
  const { post, round, confirm: question } = button.dataset;
  if (question && !window.confirm(question)) return;
  send(post, round && { round: Number(round) }, () => say("Done: the server carries it out."));
});

at("invite").addEventListener("submit", (event) => {
  event.preventDefault();
  const terms = {
    uses: Number(at("uses").value),
    expires: at("expires").value,
    federation: at("federation").value,
  };
  send("/invites", terms, (told) => { at("code").textContent = told.join_code; say(""); });
});

at("login").addEventListener("submit", (event) => {
  event.preventDefault();
  token = at("token").value.trim();
  at("token").value = "";
  say("");
  refresh();
});

(async () => {
  for (;;) {
    if (!document.hidden) await refresh();
    await new Promise((resume) => setTimeout(resume, PERIOD));
  }
})();
