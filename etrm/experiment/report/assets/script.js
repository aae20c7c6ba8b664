// Draws the queries' grids and filters them. Data: <script id="queries">, grids as digits with `/` between rows.
// Colours: ARC's own. A cell where the prediction differs from the target has a white frame on a black one.
"use strict";
(() => {
  const COLOURS = ["#000000", "#0074d9", "#ff4136", "#2ecc40", "#ffdc00", "#aaaaaa", "#f012be", "#ff851b", "#7fdbff", "#870c25"];
  const NAMES = ["black", "blue", "red", "green", "yellow", "grey", "magenta", "orange", "light blue", "maroon"];
  const DARK = new Set(["0", "1", "9"]);
  const PAGE = 12;
  const queries = JSON.parse(document.getElementById("queries").textContent);
  const cards = document.getElementById("cards");
  if (!cards || !queries.length) return;
  const [outcome, rung, task, digits, more, count] =
    ["outcome", "rung", "task", "digits", "more", "count"].map((id) => document.getElementById(id));
  let shown = [];
  let drawn = 0;

  const element = (name, kind, text) => {
    const made = document.createElement(name);
    if (kind) made.className = kind;
    if (text) made.textContent = text;
    return made;
  };
  const shape = (name, values) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(values)) made.setAttribute(key, value);
    return made;
  };
  const rowsOf = (packed) => (packed ? packed.split("/") : []);

  function grid(packed, caption, wanted) {
    const rows = rowsOf(packed);
    const other = wanted === undefined ? null : rowsOf(wanted);
    const figure = element("figure", "grid");
    const height = rows.length;
    const width = height ? rows[0].length : 0;
    if (!height) {
      figure.append(element("p", "missing", "no grid"));
    } else {
      const cell = Math.max(7, Math.min(26, 132 / Math.max(width, height)));
      const used = [...new Set(rows.join(""))].sort().map((c) => NAMES[c]).join(", ");
      const svg = shape("svg", {
        viewBox: `-0.15 -0.15 ${width + 0.3} ${height + 0.3}`, width: cell * width, height: cell * height, role: "img",
      });
      const title = shape("title", {});
      title.textContent = `${caption}: ${height} by ${width} cells; ${used}; rows ${height * width > 100 ? "in the data of this page" : rows.join(", ")}`;
      svg.append(title);
      rows.forEach((row, y) => [...row].forEach((c, x) => {
        svg.append(shape("rect", { x, y, width: 1, height: 1, fill: COLOURS[c], class: "cell" }));
        if (digits.checked) {
          const label = shape("text", { x: x + 0.5, y: y + 0.72, "text-anchor": "middle", style: `fill:${DARK.has(c) ? "#fff" : "#000"}` });
          label.textContent = c;
          svg.append(label);
        }
      }));
      if (other) rows.forEach((row, y) => [...row].forEach((c, x) => {
        if (!other[y] || other[y][x] !== c) for (const kind of ["wrong under", "wrong"])
          svg.append(shape("rect", { x: x + 0.14, y: y + 0.14, width: 0.72, height: 0.72, class: kind }));
      }));
      figure.append(svg);
    }
    figure.append(element("figcaption", "", caption));
    return figure;
  }

  function card(query) {
    const made = element("article", query.ok ? "card solved" : "card");
    const head = element("h3", "", "");
    head.append(element("span", "outcome", query.ok ? "✓ solved" : "✗ failed"), ` · ${query.t} · ${query.a}, ${query.r.replaceAll("_", " ")}`);
    const row = element("div", "row");
    const demos = element("div", "row demos");
    query.d.forEach(([input, output], i) => {
      const pair = element("div", "pair");
      const arrow = element("span", "", "→");
      arrow.setAttribute("aria-hidden", "true");
      pair.append(grid(input, `demo ${i + 1}`), arrow, grid(output, "output"));
      demos.append(pair);
    });
    row.append(demos, grid(query.i, "input"), grid(query.y, "target"), grid(query.p, "prediction", query.y));
    made.append(head, row);
    return made;
  }

  function extend() {
    for (const query of shown.slice(drawn, drawn + PAGE)) cards.append(card(query));
    const first = drawn;
    drawn = Math.min(shown.length, drawn + PAGE);
    more.hidden = drawn >= shown.length;
    more.textContent = `Show more (${shown.length - drawn} left)`;
    return first;
  }

  function filter() {
    const word = task.value.trim().toLowerCase();
    shown = queries.filter((q) =>
      (!outcome.value || (outcome.value === "solved") === q.ok) &&
      (!rung.value || rung.value === `${q.a} · ${q.r}`) &&
      q.t.toLowerCase().includes(word));
    const solved = shown.filter((q) => q.ok).length;
    count.textContent = `${shown.length} of ${queries.length} shown queries match, ${solved} of them solved.`;
    cards.replaceChildren();
    drawn = 0;
    extend();
  }

  document.getElementById("filter").addEventListener("submit", (event) => event.preventDefault());
  for (const control of [outcome, rung, digits]) control.addEventListener("change", filter);
  task.addEventListener("input", filter);
  more.addEventListener("click", () => {
    const first = cards.children[extend()];
    first.tabIndex = -1;
    first.focus();
  });
  filter();
})();
