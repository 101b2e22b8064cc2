"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const pick = (id) => document.getElementById(id);
  const [set, attack, method, methods] = ["set", "attack", "method", "methods"].map(pick);
  const ALL = "all";
  const MISSING = {
    tradeoff: "No method was evaluated under this attack.",
    classes: "No chosen method was evaluated under this attack.",
    radius: "No run of this method has a curve: it needs evaluate.radii, for example (0.5, 1.0, 1.5).",
    confusion: "No confusion is known of this method under this attack.",
    confidence: "Confidence is only known of clean images and of PGD, FGSM and MI-FGSM.",
    training: "No chosen method has a metrics.jsonl with validations beside its evaluation.",
    survivors: "No ensemble such as AutoAttack was run on the chosen methods, so there is no verdict on masked gradients.",
    examples: "No images were kept of this method under this attack.",
  };

  const element = (name, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };
  const fill = (select, texts, values = texts) =>
    select.replaceChildren(...texts.map((text, i) => element("option", { textContent: text, value: values[i] })));
  const panel = () => data.panels[Number(set.value)];
  const chosen = () => [...methods.querySelectorAll("input:checked")].map((box) => box.value);

  // Charts need one attack.
  const chartAttack = () => (attack.value === ALL ? panel().main_attack : attack.value);

  const rowsOf = {
    tradeoff: (rows) => rows.filter((r) => r.attack === chartAttack() && chosen().includes(r.method)),
    classes: (rows) => rows
      .filter((r) => chosen().includes(r.method) && ["clean", chartAttack()].includes(r.attack))
      .map((r) => ({ ...r, kind: r.attack === chartAttack() ? "attack" : "clean" })),
    radius: (rows) => rows.filter((r) => r.method === method.value),
    confusion: (rows) => rows
      .filter((r) => r.method === method.value && r.attack === chartAttack())
      .flatMap((r) => r.matrix.flatMap((line, i) => {
        const total = line.reduce((sum, count) => sum + count, 0) || 1;
        const names = panel().classes;
        return line.map((count, j) => ({ class: names[i], predicted: names[j], share: count / total }));
      })),
    confidence: (rows) => rows.filter((r) => r.attack === chartAttack() && chosen().includes(r.method)),
    training: (rows) => rows.filter((r) => chosen().includes(r.method)),
    survivors: (rows) => rows.filter((r) => chosen().includes(r.method)),
  };
  const perAttack = ["tradeoff", "classes", "confusion", "confidence", "examples"];
  const perMethod = ["radius", "confusion", "examples"];

  const subtitle = (name, rows = []) => {
    const parts = [];
    if (perMethod.includes(name)) parts.push(method.value);
    if (perAttack.includes(name)) parts.push(`under ${chartAttack()}`);
    if (name === "radius") parts.push(`under ${rows[0].attack} at any iterate; images broken at a radius stay broken at larger ones`);
    const absent = chosen().filter((label) => !rows.some((r) => r.method === label));
    if (absent.length && !perMethod.includes(name)) parts.push(`no data: ${absent.join("; ")}`);
    return parts.join(", ");
  };

  const empty = (place, name) => place.replaceChildren(element("p", { className: "missing", textContent: MISSING[name] }));

  const views = {};
  const draw = async (name) => {
    const place = document.querySelector(`#${name} .chart`);
    const rows = rowsOf[name](panel().rows[name]);
    views[name]?.finalize();
    views[name] = undefined;
    if (!rows.length) return empty(place, name);
    const spec = structuredClone(panel().specs[name]);
    spec.data = { values: rows };
    const target = element("div");
    const about = subtitle(name, rows);
    const hint = about ? `${spec.description} Shown: ${about}.` : spec.description;
    place.replaceChildren(element("p", { className: "hint", textContent: hint }), target);
    if (place.clientWidth < 600) {
      spec.config.legend.columns = 2;
      if (name === "tradeoff" && panel().methods.length > 1) spec.layer.pop(); // the legend names the marks
    }
    const renderer = rows.length > 2000 ? "canvas" : "svg";
    const drawn = await vegaEmbed(target, spec, { actions: false, renderer, tooltip: true });
    if (target.isConnected) views[name] = drawn;
    else drawn.finalize();
  };

  const image = (text, alt) => element("img", { src: `data:image/png;base64,${text}`, alt });
  const showExamples = () => {
    const place = document.querySelector("#examples .chart");
    const found = panel().rows.examples.find((r) => r.method === method.value && r.attack === chartAttack());
    if (!found) {
      empty(place, "examples");
      if (panel().left_off) place.append(element("p", { textContent: `${panel().left_off} sets of images were left off to keep this file small.` }));
      return;
    }
    const hint = `The first test image of each class, its perturbation (magnified ${found.factor} times, around grey), and the attacked image. Shown: ${subtitle("examples")}, seed ${found.seed}.`;
    const figures = found.images.map((i) => {
      const broken = i.class !== i.predicted;
      return element("figure", {},
        element("div", {}, image(i.clean, `${i.class}, test image ${i.row}`),
          image(i.change, "its perturbation, magnified"), image(i.adversarial, `attacked, taken for ${i.predicted}`)),
        element("figcaption", {}, `${i.class}, `, element("span", {
          className: broken ? "broken" : "", textContent: broken ? `now taken for ${i.predicted}` : `still taken for ${i.predicted}` })));
    });
    place.replaceChildren(element("p", { className: "hint", textContent: hint }),
      element("div", { className: "images" }, ...figures));
  };

  const filterTables = () => {
    const wanted = chosen();
    let shown = 0;
    for (const part of document.querySelectorAll(".panel")) part.hidden = part.dataset.set !== set.value;
    for (const marked of document.querySelectorAll(".panel [data-attack]")) {
      const { attack: own, method: label } = marked.dataset;
      marked.hidden = (attack.value !== ALL && own !== attack.value) || !wanted.includes(label);
    }
    const first = document.querySelector(`.panel[data-set="${set.value}"] tbody`);
    for (const row of first.rows) shown += row.hidden ? 0 : 1;
    document.querySelectorAll("[data-outcome]").forEach((said) => { said.hidden = said.dataset.outcome !== set.value; });
    pick("status").textContent = `${panel().title}: ${shown} rows in the leaderboard; charts show ${chartAttack()}.`;
  };

  const update = () => {
    filterTables();
    showExamples();
    window.ready = Promise.all(Object.keys(rowsOf).map(draw));
  };

  const start = () => {
    const { attacks, methods: labels, colours } = panel();
    fill(attack, ["all attacks", ...attacks], [ALL, ...attacks]);
    fill(method, labels);
    methods.replaceChildren(...labels.map((label, i) => {
      const swatch = element("span", { className: "swatch" });
      swatch.style.background = colours[i];
      return element("label", {}, element("input", { type: "checkbox", value: label, checked: true }), swatch, label);
    }));
    update();
  };

  const key = (row, column) => {
    const cell = row.cells[column];
    const text = cell.textContent.trim();
    const number = parseFloat(text.replace(/^[<>]/, "").replaceAll(",", ""));
    return cell.classList.contains("text") || Number.isNaN(number) ? text : number;
  };
  const sort = (heading) => {
    const table = heading.closest("table");
    const column = heading.cellIndex;
    const falls = heading.getAttribute("aria-sort") === "descending" || heading.classList.contains("text")
      && heading.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", falls ? "ascending" : "descending");
    const sign = falls ? 1 : -1;
    const rows = [...table.tBodies[0].rows].map((row) => [key(row, column), row]);
    rows.sort(([a], [b]) => {
      if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
      return sign * (typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true }));
    });
    table.tBodies[0].append(...rows.map(([, row]) => row));
  };

  document.querySelector("#controls").open = matchMedia("(min-width: 40rem)").matches;
  fill(set, data.panels.map((p) => p.title), data.panels.map((_, i) => i));
  set.addEventListener("change", start);
  for (const control of [attack, method, methods]) control.addEventListener("change", update);
  for (const heading of document.querySelectorAll("thead th")) {
    heading.firstElementChild.addEventListener("click", () => sort(heading));
  }
  for (const [id, checked] of [["all", true], ["none", false]]) {
    pick(id).addEventListener("click", () => {
      for (const box of methods.querySelectorAll("input")) box.checked = checked;
      update();
    });
  }
  const openLinked = () => {
    const linked = document.getElementById(location.hash.slice(1));
    if (linked?.tagName === "DETAILS") linked.open = true;
  };
  window.addEventListener("hashchange", openLinked);
  openLinked();
  start();
})();
