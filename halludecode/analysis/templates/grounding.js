"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const canvases = [...document.querySelectorAll(".stage canvas")];
  const spot = document.querySelector(".spot"), hint = spot.innerHTML, veil = document.querySelector(".veil");
  const all = [...document.querySelectorAll("button.w")];
  const mode = document.querySelector(".mode select");
  let pinned = null;

  const of = (button) => data[button.dataset.answer][Number(button.dataset.place)];

  function paint(canvas, map) {
    canvas.classList.toggle("on", Boolean(map));
    if (!map) return;
    canvas.width = map.columns;
    canvas.height = map.rows;
    const context = canvas.getContext("2d"), image = context.createImageData(map.columns, map.rows);
    const steps = atob(map.values);
    for (let i = 0; i < steps.length; i++) {
      image.data.set([16, 24, 40, Math.round((255 - steps.charCodeAt(i)) * 0.78)], 4 * i);
    }
    context.putImageData(image, 0, 0);
  }

  function line(list, name, value) {
    if (!value) return;
    const term = document.createElement("dt"), told = document.createElement("dd");
    term.textContent = name;
    told.textContent = value;
    list.append(term, told);
  }

  function show(button) {
    const word = button && of(button);
    const kind = mode ? mode.value : "maps";
    canvases.forEach((canvas, i) => paint(canvas, word ? word[kind][i] : null));
    if (veil) {
      veil.classList.toggle("on", Boolean(word) && kind === "maps");
      if (word) veil.querySelector("b").textContent = word.peak;
    }
    if (!word) {
      spot.innerHTML = hint;
      return;
    }
    const title = document.createElement("strong"), list = document.createElement("dl");
    title.textContent = word.word;
    line(list, "grounding", word.grounding);
    line(list, "", word.times);
    line(list, "entropy", word.entropy);
    line(list, "image attention", word.mass);
    line(list, "its tokens", word.parts.join(", "));
    spot.replaceChildren(title, word.about ? ` ${word.about}` : "", list);
  }

  function pin(button) {
    if (pinned) pinned.classList.remove("pinned"), pinned.setAttribute("aria-pressed", "false");
    pinned = button === pinned ? null : button;
    if (pinned) pinned.classList.add("pinned"), pinned.setAttribute("aria-pressed", "true");
    show(pinned);
  }

  if (mode) mode.addEventListener("change", () => show(pinned));
  all.forEach((button, i) => {
    button.addEventListener("mouseenter", () => show(button));
    button.addEventListener("mouseleave", () => show(pinned || (document.activeElement.matches("button.w") ? document.activeElement : null)));
    button.addEventListener("focus", () => show(button));
    button.addEventListener("blur", () => show(pinned));
    button.addEventListener("click", () => pin(button));
    button.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step && all[i + step]) {
        all[i + step].focus();
        event.preventDefault();
      } else if (event.key === "Escape" && pinned) {
        pin(pinned);
      }
    });
  });
  const named = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
  if (named && named.matches("button.w")) named.focus();
})();
