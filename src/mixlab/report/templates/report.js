"use strict";
(() => {
  const page = JSON.parse(document.getElementById("payload").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const hovers = window.matchMedia("(hover: hover)");
  const coarse = window.matchMedia("(pointer: coarse)");
  const pressed = document.querySelector('[data-view][aria-pressed="true"]');
  const shown = { view: pressed ? pressed.dataset.view : "valid", hidden: new Set(), printing: false };
  const PRINT_WIDTH = 660; // px: the narrower of A4 and Letter less 15 mm margins, with room to spare

  const PRINT_HEIGHT = 330; // px: two figures and their sentences on a page

  const theme = () => page.themes[dark.matches && !shown.printing ? "dark" : "light"];

  // "$blue" -> the theme's blue, "$blue@0.2" -> the same at 20% opacity, also inside longer strings
  function colour(text, colours) {
    return text.replace(/\$([a-z]+\d?)(?:@([\d.]+))?/g, (all, name, alpha) => {
      const hex = colours[name];
      if (!hex) return all;
      if (!alpha) return hex;
      const part = (at) => parseInt(hex.slice(at, at + 2), 16);
      return `rgba(${part(1)},${part(3)},${part(5)},${alpha})`;
    });
  }

  const PAINTED = new Set(["color", "fillcolor", "gridcolor", "linecolor", "tickcolor", "ticktext"]);

  function paint(value, colours, key) {
    if (typeof value === "string") return PAINTED.has(key) ? colour(value, colours) : value;
    if (Array.isArray(value)) return PAINTED.has(key) || typeof value[0] === "object" ? value.map((item) => paint(item, colours, key)) : value.slice();
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, paint(item, colours, name)]));
    }
    return value;
  }

  function draw(div) {
    const views = page.figures[div.dataset.figure];
    const view = views[shown.view] || views[Object.keys(views)[0]];
    if (view.reading) {
      const figure = div.closest("figure");
      figure.querySelector(".reading").textContent = view.reading;
      div.setAttribute("aria-label", `Figure: ${figure.querySelector("h3").textContent}. ${view.reading}`);
    }
    const colours = theme();
    const visible = (name) => !name || !shown.hidden.has(name);
    const data = paint(view.data.filter((trace) => visible(trace.meta && trace.meta.model)), colours, "data");
    const layout = paint(view.layout, colours, "layout");
    layout.annotations = layout.annotations.filter((note) => visible(note.name));
    layout.shapes = layout.shapes.filter((shape) => visible(shape.name));
    // unnamed from here on: Plotly would look a name up among a template's items
    [...layout.annotations, ...layout.shapes].forEach((item) => delete item.name);
    if (shown.printing) {
      layout.height = Math.min(layout.height, PRINT_HEIGHT);
      layout.annotations.forEach((note) => { note.font.size = 10.5; });
    }
    div.style.height = `${layout.height}px`; // what a responsive resize measures
    const family = getComputedStyle(document.body).fontFamily;
    Object.assign(layout, {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family, size: 12.5, color: colours.soft },
      hoverlabel: { bgcolor: colours.card, bordercolor: colours.rule, font: { family, size: 13, color: colours.ink } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colours.soft, activecolor: colours.ink },
      dragmode: coarse.matches ? false : "zoom", // a finger scrolls the page
      uirevision: shown.view,
    });
    if (shown.printing) Object.assign(layout, { width: PRINT_WIDTH, autosize: false });
    else layout.autosize = true;
    return Plotly.react(div, data, layout, {
      displaylogo: false,
      responsive: true,
      displayModeBar: hovers.matches ? "hover" : false,
      modeBarButtons: [["toImage", "resetScale2d"]],
      toImageButtonOptions: { format: "svg", filename: div.dataset.figure },
    });
  }

  const plots = [...document.querySelectorAll(".plot")];
  const drawAll = () => Promise.all(plots.map(draw));

  function printing(on) {
    if (shown.printing === on) return;
    shown.printing = on;
    drawAll();
  }

  function sort(table, column, button) {
    const head = button.closest("th");
    const rising = head.getAttribute("aria-sort") !== "ascending";
    table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const key = (row) => {
      const cell = row.cells[column];
      const text = cell && column < row.cells.length && !(row.classList.contains("failed") && column) ? cell.dataset.value : "";
      return column ? (text === "" || text === undefined ? null : Number(text)) : text;
    };
    const order = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b) * (rising ? 1 : -1);
    [...table.tBodies].forEach((body) => {
      [...body.rows]
        .filter((row) => !row.classList.contains("group"))
        .map((row) => [key(row), row])
        .sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : order(a, b)))
        .forEach(([, row]) => body.append(row));
    });
  }

  document.querySelectorAll("table[data-sort]").forEach((table) => {
    table.querySelectorAll("thead button").forEach((button, column) => {
      button.addEventListener("click", () => sort(table, column, button));
    });
  });
  document.querySelectorAll("[data-view]").forEach((button) => {
    button.addEventListener("click", () => {
      shown.view = button.dataset.view;
      document.querySelectorAll("[data-view]").forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      drawAll();
    });
  });
  document.querySelectorAll("[data-model]").forEach((button) => {
    button.addEventListener("click", () => {
      const name = button.dataset.model;
      if (!shown.hidden.delete(name)) shown.hidden.add(name);
      button.setAttribute("aria-pressed", String(!shown.hidden.has(name)));
      drawAll();
    });
  });
  document.querySelectorAll("[data-download]").forEach((button) => {
    button.addEventListener("click", () => {
      const file = page.downloads[Number(button.dataset.download)];
      const text = typeof file.content === "string" ? file.content : JSON.stringify(file.content, null, 1);
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([text], { type: file.type }));
      link.download = file.name;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    });
  });

  // a shadow at the edge where a table continues, and a hint while it is not scrolled
  document.querySelectorAll(".scroller").forEach((scroller) => {
    const box = scroller.querySelector(".scroll");
    const mark = () => {
      const rest = box.scrollWidth - box.clientWidth;
      scroller.classList.toggle("wide", rest > 1);
      scroller.classList.toggle("more", rest - box.scrollLeft > 1);
    };
    box.addEventListener("scroll", mark, { passive: true });
    new ResizeObserver(mark).observe(box);
    mark();
  });
  dark.addEventListener("change", drawAll);
  window.addEventListener("beforeprint", () => printing(true));
  window.addEventListener("afterprint", () => printing(false));
  window.matchMedia("print").addEventListener("change", (event) => printing(event.matches));
  drawAll().then(() => { document.documentElement.dataset.ready = "true"; });
})();
