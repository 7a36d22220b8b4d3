"use strict";
const each = (selector, root = document) => Array.from(root.querySelectorAll(selector));
const calls = each("tbody.call");
const form = document.getElementById("filter");

function filter() {
  const words = form.elements.words.value.trim().toLowerCase();
  let shown = 0;
  for (const call of calls) {
    const fits = (!form.elements.failed.checked || call.dataset.passed === "no")
      && (!form.elements.verdict.value || call.dataset.verdict === form.elements.verdict.value)
      && (!form.elements.trunk.value || call.dataset.trunk === form.elements.trunk.value)
      && (!words || call.querySelector(".sum").textContent.toLowerCase().includes(words));
    call.hidden = !fits;
    shown += fits ? 1 : 0;
  }
  document.getElementById("shown").textContent = `${shown} of ${calls.length} calls`;
}
form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(filter));

function toggle(button, open) {
  button.setAttribute("aria-expanded", String(open));
  document.getElementById(button.getAttribute("aria-controls")).hidden = !open;
}
each(".open").forEach((button) => button.addEventListener("click", () =>
  toggle(button, button.getAttribute("aria-expanded") !== "true")));

function fromAddress() {
  const call = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!call || !call.matches("tbody.call")) return;
  call.hidden = false;
  toggle(call.querySelector(".open"), true);
  call.scrollIntoView();
}
addEventListener("hashchange", fromAddress);
fromAddress();

function choose(arrow) {
  const ladder = arrow.closest(".laddered");
  const pressed = arrow.getAttribute("aria-pressed") === "true";
  each(".arrow", ladder).forEach((other) => other.hasAttribute("aria-pressed")
    && other.setAttribute("aria-pressed", String(other === arrow && !pressed)));
  each("pre", ladder).forEach((text) => { text.hidden = pressed || text.id !== arrow.dataset.text; });
}
each(".arrow[data-text]").forEach((arrow) => {
  arrow.addEventListener("click", () => choose(arrow));
  arrow.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    choose(arrow);
  });
});

each(".sound").forEach((sound) => {
  const button = sound.querySelector(".play");
  if (!button) return;
  const audio = sound.querySelector("audio");
  const wave = sound.querySelector(".wave");
  const head = wave.querySelector(".head");
  const clock = sound.querySelector(".clock");
  const length = Number(sound.dataset.seconds);
  const width = wave.viewBox.baseVal.width;
  const load = () => { if (!audio.src) audio.src = "data:audio/ogg;base64," + audio.dataset.opus; };
  const move = () => {
    const x = Math.min(audio.currentTime / length, 1) * width;
    head.setAttribute("x1", x);
    head.setAttribute("x2", x);
    clock.textContent = `${audio.currentTime.toFixed(1)} s`;
    if (!audio.paused) requestAnimationFrame(move);
  };
  button.addEventListener("click", () => {
    load();
    each("audio").forEach((other) => { if (other !== audio) other.pause(); });
    if (audio.paused) audio.play(); else audio.pause();
  });
  wave.addEventListener("click", (event) => {
    const box = wave.getBoundingClientRect();
    const at = (event.clientX - box.left) / box.width * length;
    load();
    audio.currentTime = at;
    move();
  });
  audio.addEventListener("play", () => { button.classList.add("on"); button.textContent = "Pause"; move(); });
  const stopped = () => { button.classList.remove("on"); button.textContent = "Play"; move(); };
  audio.addEventListener("pause", stopped);
  audio.addEventListener("ended", stopped);
});
