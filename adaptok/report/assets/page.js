"use strict";
(() => {
  const root = document.documentElement;
  const plots = [...document.querySelectorAll(".plot")];
  const hidden = new Map(); // section id -> labels that are switched off

  // Colors

  const dark = () => root.dataset.theme === "dark";
  const byRgb = Object.fromEntries(
    Object.entries(window.adaptokDark).map(([from, to]) => [rgb(from), rgb(to)]));

  function rgb(hex) {
    return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)).join(",");
  }

  function shade(value) { // a color of the light theme in the current one
    if (!dark()) return value;
    if (value in window.adaptokDark) return window.adaptokDark[value];
    const faint = /^rgba\((\d+,\d+,\d+),([\d.]+)\)$/.exec(value);
    return faint && byRgb[faint[1]] ? `rgba(${byRgb[faint[1]]},${faint[2]})` : value;
  }

  function shaded(node) {
    if (typeof node === "string") return shade(node);
    if (Array.isArray(node)) return node.map(shaded);
    if (node && typeof node === "object") {
      return Object.fromEntries(Object.entries(node).map(([key, value]) => [key, shaded(value)]));
    }
    return node;
  }

  function template() { // plotly's template of all figures in the colors of the page
    const style = getComputedStyle(root);
    const get = (name) => style.getPropertyValue(name).trim();
    const axis = {
      color: get("--soft"), gridcolor: get("--line"), linecolor: get("--soft"), tickcolor: get("--soft"), showline: true,
      ticks: "outside", ticklen: 4, zeroline: false, automargin: true,
      title: { standoff: 8, font: { color: get("--text"), size: 13 } },
    };
    const hoverlabel = {
      bgcolor: get("--ground"), bordercolor: get("--soft"), font: { color: get("--text") }, align: "left", namelength: -1,
    };
    return { layout: {
      xaxis: axis, yaxis: axis, hoverlabel, showlegend: false, hovermode: "closest",
      margin: { l: 62, r: 14, t: 22, b: 50 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: get("--text") },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: get("--soft"), activecolor: get("--accent") },
    } };
  }

  // Plots

  const config = {
    responsive: true, displaylogo: false, displayModeBar: "hover", showSendToCloud: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    toImageButtonOptions: { format: "svg" },
  };

  function draw(div) {
    const stored = document.querySelector(`script[data-for="${div.id}"]`);
    const figure = shaded(JSON.parse(stored.textContent));
    const off = hidden.get(div.closest(".set").id) || new Set();
    for (const trace of figure.data) trace.visible = !off.has(trace.legendgroup);
    div.dataset.drawn = "true";
    return Plotly.react(div, figure.data, { ...figure.layout, template: template() }, config);
  }

  const redraw = (within) => plots.filter((p) => p.dataset.drawn && within.contains(p)).forEach(draw);
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting && !entry.target.dataset.drawn) draw(entry.target);
    }
  }, { rootMargin: "500px" });
  plots.forEach((plot) => near.observe(plot));
  addEventListener("beforeprint", () => plots.forEach(draw));

  // Light and dark

  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("adaptok-theme", root.dataset.theme); } catch { /* not kept, then */ }
    redraw(document);
  });

  // Legends

  for (const legend of document.querySelectorAll(".legend")) {
    const section = legend.closest(".set");
    const chips = [...legend.querySelectorAll(".chip")];
    const show = (chip, on) => chip.setAttribute("aria-pressed", String(on));
    const shown = (chip) => chip.getAttribute("aria-pressed") === "true";
    const apply = () => {
      hidden.set(section.id, new Set(chips.filter((c) => !shown(c)).map((c) => c.dataset.label)));
      redraw(section);
    };
    for (const chip of chips) {
      chip.addEventListener("click", () => { show(chip, !shown(chip)); apply(); });
      chip.addEventListener("dblclick", () => {
        const alone = chips.every((other) => shown(other) === (other === chip));
        chips.forEach((other) => show(other, alone || other === chip));
        apply();
      });
    }
  }

  // Tables

  function order(a, b) { // numbers before texts, nothing last
    if (a === b) return 0;
    if (a === null) return 1;
    if (b === null) return -1;
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  }

  function valueOf(cell) {
    const text = cell.dataset.value;
    if (text === undefined || text === "") return null;
    return Number.isNaN(Number(text)) ? text : Number(text);
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows].map((row) => [valueOf(row.cells[column]), row]);
      rows.sort(([a], [b]) => (a === null || b === null || up ? order(a, b) : order(b, a)));
      table.tBodies[0].append(...rows.map(([, row]) => row));
    }));
  }

  for (const field of document.querySelectorAll("input.filter")) {
    const rows = [...field.parentElement.querySelectorAll("tbody tr")];
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/);
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
    });
  }

  // Contents

  const toc = document.getElementById("toc");
  const menu = document.getElementById("menu");
  const open = (on) => { toc.classList.toggle("open", on); menu.setAttribute("aria-expanded", String(on)); };
  menu.addEventListener("click", () => open(!toc.classList.contains("open")));
  const links = new Map([...toc.querySelectorAll("a")].map((a) => [a.hash.slice(1), a]));
  const places = [...links.keys()].map((id) => document.getElementById(id)).filter(Boolean);
  function mark() {
    const passed = places.filter((place) => place.getBoundingClientRect().top < 170);
    const here = passed.length ? passed[passed.length - 1].id : "summary";
    for (const [id, link] of links) link.classList.toggle("here", id === here);
  }
  let waiting = false;
  addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; mark(); });
  }, { passive: true });
  mark();
  toc.addEventListener("click", () => open(false));

  // Pictures

  const zoom = document.getElementById("zoom");
  for (const button of document.querySelectorAll("button.zoom")) {
    button.addEventListener("click", () => {
      zoom.firstElementChild.src = button.firstElementChild.src;
      zoom.showModal();
    });
  }
  zoom.addEventListener("click", () => zoom.close());
})();
