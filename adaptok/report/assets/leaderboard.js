"use strict";
(() => {
  const root = document.documentElement;
  const { rows, columns, measures, about } = JSON.parse(document.getElementById("content").textContent);
  const choices = Object.fromEntries(["track", "set", "kind", "cost"].map((id) => [id, document.getElementById(id)]));
  const head = document.querySelector("#table thead tr");
  const body = document.querySelector("#table tbody");
  const COSTS = ["tokens", "MFLOP", "training, ms", "inference, ms", "cells, ms"];
  const KINDS = { all: "all", tokens: "equal tokens", flops: "equal operations", seconds: "equal seconds", none: "as they are" };
  let sorted = { title: null, up: true };

  function element(tag, text, attributes = {}) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text; // never as HTML: names come from others' files
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  }

  function fill(select, entries) { // keeps what was chosen, if it is still there
    const before = select.value;
    select.replaceChildren(...entries.map(([value, text]) => element("option", text, { value })));
    if (entries.some(([value]) => value === before)) select.value = before;
  }

  const titlesOf = (track) => columns[track].map(([title]) => title);
  const ofTrack = () => rows.filter((row) => row.track === choices.track.value);
  const selected = () => ofTrack().filter((row) =>
    (choices.set.value === "all" || row.set === choices.set.value) &&
    (choices.kind.value === "all" || row.kind === choices.kind.value));

  function number(value) {
    if (value === null || value === undefined) return "–";
    if (value === 0) return "0";
    return Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  }

  function valueOf(row, title) {
    if (title in row.values) return row.values[title];
    return { set: row.set, method: row.method, budget: row.budget, seeds: row.seeds, commit: row.commit, marks: row.marks.join(", ") }[title];
  }

  function order(a, b) { // numbers before texts, nothing last
    if (a === null || a === undefined) return b === null || b === undefined ? 0 : 1;
    if (b === null || b === undefined) return -1;
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
  }

  function drawTable() {
    const track = choices.track.value;
    const titles = ["method", "set", "budget", "marks", ...titlesOf(track), "seeds", "commit"];
    const numeric = new Set([...titlesOf(track), "seeds"]);
    head.replaceChildren(...titles.map((title) => {
      const cell = element("th", undefined, { scope: "col" });
      if (numeric.has(title)) cell.className = "number";
      if (sorted.title === title) cell.setAttribute("aria-sort", sorted.up ? "ascending" : "descending");
      const button = element("button", title, { type: "button" });
      button.addEventListener("click", () => {
        sorted = { title, up: sorted.title === title ? !sorted.up : true };
        drawTable();
      });
      cell.append(button);
      return cell;
    }));
    const shown = selected();
    if (sorted.title !== null) {
      shown.sort((a, b) => {
        const [x, y] = [valueOf(a, sorted.title), valueOf(b, sorted.title)];
        const absent = [x, y].some((v) => v === null || v === undefined);
        return sorted.up || absent ? order(x, y) : order(y, x);
      });
    }
    body.replaceChildren(...shown.map((row) => {
      const line = element("tr");
      if (!row.measured) line.className = "quoted";
      line.title = row.source || `${row.hardware}; first predicted frame ${row.first ?? "–"}`;
      for (const title of titles) {
        const first = title === "method";
        const cell = element(first ? "th" : "td", undefined, first ? { scope: "row" } : {});
        if (title === "marks") {
          cell.append(...row.marks.map((mark) => element("span", mark, { class: "mark" })));
        } else if (numeric.has(title)) {
          cell.className = "number";
          const spread = title === measures[track] && row.spread !== null ? ` ± ${number(row.spread)}` : "";
          cell.textContent = number(valueOf(row, title)) + spread;
        } else {
          cell.textContent = valueOf(row, title);
        }
        line.append(cell);
      }
      return line;
    }));
  }

  function drawPlot() {
    const measure = measures[choices.track.value];
    const cost = choices.cost.value;
    const style = getComputedStyle(root);
    const color = (name) => style.getPropertyValue(name).trim();
    const points = selected().map((row) => ({ row, x: row.values[cost], y: row.values[measure] }))
      .filter((point) => point.x > 0 && point.y > 0);
    const best = [];
    for (const point of points.filter((p) => p.row.measured).sort((a, b) => a.x - b.x || a.y - b.y)) {
      if (!best.length || point.y < best[best.length - 1].y) best.push(point);
    }
    const methods = [...new Set(points.map((point) => point.row.method))];
    const symbols = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon"];
    const traces = methods.map((method, index) => {
      const own = points.filter((point) => point.row.method === method);
      return {
        type: "scatter", mode: "markers", name: method, x: own.map((p) => p.x), y: own.map((p) => p.y),
        marker: { size: 9, symbol: symbols[Math.floor(index / 10) % symbols.length] + (own[0].row.measured ? "" : "-open") },
        text: own.map((p) => `${escaped(p.row.set)}, ${escaped(p.row.budget)}`), hovertemplate: "%{text}<br>%{x:.4g}, %{y:.4g}",
      };
    });
    for (const trace of traces) trace.name = escaped(trace.name);
    const line = { type: "scatter", mode: "lines", x: best.map((p) => p.x), y: best.map((p) => p.y), line: { shape: "hv", dash: "dot", color: color("--soft") }, hoverinfo: "skip", showlegend: false };
    const axis = { type: "log", gridcolor: color("--line"), color: color("--soft"), automargin: true };
    Plotly.react("plot", [line, ...traces], {
      xaxis: { ...axis, title: { text: cost } }, yaxis: { ...axis, title: { text: measure } },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: color("--text") }, margin: { t: 16, r: 10 },
    }, { responsive: true, displaylogo: false, showSendToCloud: false, toImageButtonOptions: { format: "svg" } });
  }

  const escaped = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;"); // plotly reads a little HTML

  function draw() {
    drawTable();
    drawPlot();
  }

  function chooseTrack() {
    const track = choices.track.value;
    sorted = { title: null, up: true };
    about[track] && (document.getElementById("about").textContent = about[track]);
    const sets = [...new Set(ofTrack().map((row) => row.set))];
    fill(choices.set, [...sets.map((name) => [name, name]), ["all", "all"]]);
    const kinds = [...new Set(ofTrack().map((row) => row.kind))];
    fill(choices.kind, ["all", ...kinds].map((kind) => [kind, KINDS[kind] || kind]));
    const costs = titlesOf(track).filter((title) => COSTS.includes(title));
    fill(choices.cost, costs.map((title) => [title, title]));
    draw();
  }

  choices.track.addEventListener("change", chooseTrack);
  for (const name of ["set", "kind"]) choices[name].addEventListener("change", draw);
  choices.cost.addEventListener("change", drawPlot);
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
    drawPlot();
  });
  if (rows.length) chooseTrack();
})();
