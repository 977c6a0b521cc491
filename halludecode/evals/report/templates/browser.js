"use strict";
(function () {
  var data = JSON.parse(document.getElementById("samples").textContent);
  var root = document.getElementById("browser");
  var form = root.querySelector("form"), cards = root.querySelector(".cards");
  var PAGE = 6, MARK = "#browse?";

  function el(tag, name, text) {
    var made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  }
  function unique(values) { return Array.from(new Set(values)); }
  function titled(task) { return data.titles[task] || task; }

  // What one strategy did with one sample.
  function said(sample, i) { return i >= 0 && sample.by[i] >= 0 ? sample.said[sample.by[i]] : null; }
  function same(sample, a, b) { return sample.label ? a[2] === b[2] : a[0] === b[0]; }
  var OUTCOMES = {
    any: ["any", function () { return true; }],
    right: ["right", function (s, a) { return a[1] === 0; }],
    wrong: ["wrong", function (s, a) { return a[1] > 0; }],
    differs: ["differs from greedy", function (s, a, g) { return g && !same(s, a, g); }],
    better: ["better than greedy", function (s, a, g) { return g && a[1] < g[1]; }],
    worse: ["worse than greedy", function (s, a, g) { return g && a[1] > g[1]; }]
  };
  var DRAWN = {all: "all", drawn: "drawn blindly", apart: "most differing"};

  var all = data.samples.map(function (s) { return Object.assign({from: data.sources[s.source]}, s); });
  var state = {run: "", task: "", data: "", split: "", strategy: "", outcome: "any", pictures: "all", text: "", page: 0};
  var fields = {};

  function select(name, title, options) {
    var label = el("label", "", title), box = el("select");
    options.forEach(function (o) {
      var option = el("option", "", o[1]);
      option.value = o[0];
      box.append(option);
    });
    box.name = name;
    box.addEventListener("change", function () { change(name, box.value); });
    label.append(box);
    if (options.length > 2 || name === "outcome" || name === "pictures") form.append(label);
    fields[name] = box;
  }
  function choices(values, any, words) {
    return [["", any]].concat(unique(values).map(function (v) { return [v, words ? words(v) : v]; }));
  }
  select("run", "run", choices(data.sources.map(function (s) { return s.run; }), "all"));
  select("task", "task", choices(all.map(function (s) { return s.task; }), "all", titled));
  select("data", "data", choices(data.sources.map(function (s) { return s.data; }), "all"));
  select("split", "split", choices(all.map(function (s) { return s.split; }).filter(Boolean), "all"));
  select("strategy", "strategy", choices([].concat.apply([], data.sources.map(function (s) { return s.strategies; })), "any"));
  select("outcome", "answer", Object.keys(OUTCOMES).map(function (k) { return [k, OUTCOMES[k][0]]; }));
  select("pictures", "pictures", Object.keys(DRAWN).map(function (k) { return [k, DRAWN[k]]; }));
  var search = el("input");
  search.type = "search";
  search.placeholder = "search";
  search.addEventListener("input", function () { change("text", search.value); });
  var label = el("label", "", "text");
  label.append(search);
  form.append(label);
  fields.text = search;
  form.addEventListener("submit", function (event) { event.preventDefault(); });

  function fits(s) {
    if (state.run && s.from.run !== state.run || state.task && s.task !== state.task) return false;
    if (state.data && s.from.data !== state.data || state.split && s.split !== state.split) return false;
    if (state.pictures !== "all" && data.pictures[s.picture].drawn !== (state.pictures === "drawn")) return false;
    if (state.text) {
      var hay = [s.asked, String(s.id), data.pictures[s.picture].name].concat(s.said.map(function (a) { return a[0]; }));
      if (hay.join("\n").toLowerCase().indexOf(state.text.toLowerCase()) < 0) return false;
    }
    var test = OUTCOMES[state.outcome][1], greedy = said(s, s.from.baseline);
    return s.from.strategies.some(function (name, i) {
      var answer = said(s, i);
      return answer && (!state.strategy || name === state.strategy) && test(s, answer, greedy);
    });
  }

  function answer(sample, found) {
    var cell = el("span", "words");
    (found[3] || [found[0]]).forEach(function (piece) {
      if (typeof piece === "string") { cell.append(piece); return; }
      var word = el(piece[2] ? "s" : "span", piece[2] ? "wrong" : "true", piece[0]);
      word.title = piece[2] ? "no " + piece[1] + " in the picture" : piece[1] + " is in the picture";
      cell.append(word);
      if (piece[2]) cell.append(el("sup", "cross", "✗"));
    });
    return cell;
  }
  function verdict(sample, found, greedy, self) {
    var gap = greedy ? found[1] - greedy[1] : 0, invented = !sample.label && sample.objects ? found[1] + " invented" : "";
    var word = self || !greedy ? "" : gap < 0 ? "better than greedy" : gap > 0 ? "worse than greedy"
      : found[0] === greedy[0] ? "as greedy" : same(sample, found, greedy) ? "" : "other words";
    var sign = gap < 0 ? "▲ " : gap > 0 ? "▼ " : "";
    var made = el("small", gap < 0 ? "better" : gap > 0 ? "worse" : "", sign + (gap && invented || [invented, word].filter(Boolean).join(", ")));
    if (word) made.title = word;
    return made;
  }
  function entry(sample, name, i) {
    var found = said(sample, i), greedy = said(sample, sample.from.baseline);
    var row = el("div", "answer"), who = el("div", "who", name);
    if (name === state.strategy) row.classList.add("asked");
    row.append(who);
    if (!found) { row.append(el("div", "soft", "no answer")); return row; }
    var told = el("div", "told");
    if (sample.label) told.append(el("span", found[1] ? "no" : "ok", found[1] ? "✗ " : "✓ "));
    told.append(answer(sample, found));
    if (sample.label && found[2] && found[2] !== found[0].trim().toLowerCase()) told.append(el("small", "", " read as " + found[2]));
    if (sample.margins[i] !== null) {
      var margin = el("small", "", (sample.margins[i] > 0 ? " +" : " ") + sample.margins[i].toFixed(1));
      margin.title = "score of yes minus score of no at the first word";
      told.append(margin);
    }
    who.append(verdict(sample, found, greedy, i === sample.from.baseline));
    row.append(told);
    return row;
  }
  function card(sample) {
    var picture = data.pictures[sample.picture], made = el("article", "card"), left = el("div"), right = el("div");
    if (picture.shown) {
      var image = el("img");
      image.src = picture.shown;
      image.alt = picture.name;
      left.append(image);
    } else left.append(el("div", "none", "picture not kept"));
    left.append(el("div", "soft tiny", picture.name));
    var where = [titled(sample.task), sample.from.data, sample.split, "id " + sample.id];
    if (unique(data.sources.map(function (s) { return s.run; })).length > 1) where.unshift(sample.from.run);
    right.append(el("div", "soft small", where.filter(Boolean).join(" · ")));
    var asked = el("div", "question", sample.asked);
    right.append(asked);
    if (sample.label) right.append(el("div", "soft small", "true answer: " + sample.label));
    else if (sample.objects) right.append(el("div", "soft small", "in the picture: " + sample.objects.join(", ")));
    var list = el("div", sample.label ? "answers short" : "answers");
    sample.from.strategies.forEach(function (name, i) { list.append(entry(sample, name, i)); });
    right.append(list);
    made.append(left, right);
    return made;
  }

  function show() {
    var fit = all.filter(fits), pages = Math.max(1, Math.ceil(fit.length / PAGE));
    state.page = Math.min(Math.max(0, state.page), pages - 1);
    var start = state.page * PAGE, part = fit.slice(start, start + PAGE);
    cards.replaceChildren.apply(cards, part.map(card));
    if (!part.length) cards.append(el("p", "soft", "No sample in this file fits."));
    root.querySelectorAll(".place").forEach(function (place) {
      place.textContent = part.length ? (start + 1) + " to " + (start + part.length) + " of " + fit.length + " that fit" : "0 that fit";
    });
    root.querySelectorAll("[data-step]").forEach(function (button) {
      button.disabled = +button.dataset.step < 0 ? state.page === 0 : state.page >= pages - 1;
    });
    Object.keys(fields).forEach(function (name) { fields[name].value = state[name]; });
  }
  function keep() {
    var parts = Object.keys(state).filter(function (k) { return state[k] && state[k] !== "any" && state[k] !== "all"; })
      .map(function (k) { return k + "=" + encodeURIComponent(state[k]); });
    try { history.replaceState(null, "", MARK + parts.join("&")); } catch (refused) { /* the page works without */ }
  }
  function change(name, value) {
    state[name] = value;
    state.page = 0;
    show();
    keep();
  }
  function read() {
    if (location.hash.indexOf(MARK) !== 0) return false;
    new URLSearchParams(location.hash.slice(MARK.length)).forEach(function (value, name) {
      if (name === "page") state.page = parseInt(value, 10) || 0;
      else if (name === "text") state.text = value;
      else if (fields[name] && Array.from(fields[name].options).some(function (o) { return o.value === value; })) state[name] = value;
    });
    return true;
  }
  root.querySelectorAll("[data-step]").forEach(function (button) {
    button.addEventListener("click", function () {
      state.page += +button.dataset.step;
      show();
      keep();
      document.getElementById("browse").scrollIntoView();
    });
  });
  window.addEventListener("hashchange", function () { if (read()) show(); });
  root.hidden = false;
  var asked = read();
  show();
  if (asked) document.getElementById("browse").scrollIntoView();
})();
