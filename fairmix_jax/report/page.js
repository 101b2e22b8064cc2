"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const pick = (id) => document.getElementById(id);
  const [set, attack, method, methods] = ["set", "attack", "method", "methods"].map(pick);
  const ALL = "all";
  const MISSING = {
    tradeoff: "No method was evaluated under this attack.",
    classes: "No chosen method was evaluated under this attack.",
    radius: "This method has no curve: it needs evaluate.radii, for example (0.5, 1.0, 1.5).",
    confusion: "No confusion is known of this method under this attack.",
    calibration: "Confidence is only known of clean images and of PGD, FGSM and MI-FGSM.",
    training: "There is no metrics.jsonl with validations beside the evaluations.",
    survivors: "No ensemble such as AutoAttack was run on the chosen methods.",
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

  // Charts need one attack: with all of them chosen, the strongest that is a single one.
  const chartAttack = () => {
    if (attack.value !== ALL) return attack.value;
    const single = panel().attacks.filter((name) => name !== "union");
    return single[single.length - 1];
  };

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
    calibration: (rows) => rows.filter((r) => r.attack === chartAttack() && chosen().includes(r.method)),
    training: (rows) => rows.filter((r) => chosen().includes(r.method)),
    survivors: (rows) => rows.filter((r) => chosen().includes(r.method)),
  };
  const perAttack = ["tradeoff", "classes", "confusion", "calibration", "examples"];
  const perMethod = ["radius", "confusion", "examples"];

  const subtitle = (name) => {
    const parts = [];
    if (perMethod.includes(name)) parts.push(method.value);
    if (perAttack.includes(name)) parts.push(`under ${chartAttack()}`);
    return parts.join(", ");
  };

  const empty = (place, name) => place.replaceChildren(element("p", { className: "missing", textContent: MISSING[name] }));

  const draw = async (name) => {
    const place = document.querySelector(`#${name} .chart`);
    const rows = rowsOf[name](panel().rows[name]);
    if (!rows.length) return empty(place, name);
    const spec = structuredClone(panel().specs[name]);
    spec.data = { values: rows };
    const target = element("div");
    place.replaceChildren(element("p", { className: "hint", textContent: subtitle(name) }), target);
    await vegaEmbed(target, spec, { actions: false, renderer: "svg", tooltip: true });
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
    const hint = `${subtitle("examples")}. Of each class the first test image, its perturbation (${found.factor} times, around grey), and both together.`;
    const figures = found.images.map((i) => {
      const broken = i.class !== i.predicted;
      return element("figure", {},
        element("div", {}, image(i.clean, `${i.class}, test image ${i.row}`),
          image(i.change, "its perturbation, magnified"), image(i.adversarial, `attacked, taken for ${i.predicted}`)),
        element("figcaption", {}, `${i.class} `, element("span", {
          className: broken ? "broken" : "", textContent: broken ? `\u2192 ${i.predicted}` : "stays" })));
    });
    place.replaceChildren(element("p", { className: "hint", textContent: hint }),
      element("div", { className: "images" }, ...figures));
  };

  const filterTables = () => {
    const wanted = chosen();
    let shown = 0;
    for (const part of document.querySelectorAll(".panel")) part.hidden = part.dataset.set !== set.value;
    for (const row of document.querySelectorAll("tbody tr")) {
      const { attack: own, method: label } = row.dataset;
      row.hidden = (own !== undefined && attack.value !== ALL && own !== attack.value)
        || (label !== undefined && !wanted.includes(label));
      if (!row.hidden && own !== undefined && row.closest(".panel").dataset.set === set.value) shown += 1;
    }
    pick("status").textContent = `${panel().title}: ${shown} rows; charts show ${chartAttack()}.`;
  };

  const update = () => {
    filterTables();
    showExamples();
    return Promise.all(Object.keys(rowsOf).map(draw));
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
    return update();
  };

  const key = (row, column) => {
    const text = row.cells[column].textContent.trim();
    const number = parseFloat(text.replace(/^[<>]/, ""));
    return Number.isNaN(number) ? text : number;
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
      return sign * (typeof a === "number" ? a - b : a.localeCompare(b));
    });
    table.tBodies[0].append(...rows.map(([, row]) => row));
  };

  fill(set, data.panels.map((p) => p.title), data.panels.map((_, i) => i));
  set.addEventListener("change", start);
  for (const control of [attack, method, methods]) control.addEventListener("change", update);
  for (const heading of document.querySelectorAll("thead th")) {
    heading.firstElementChild.addEventListener("click", () => sort(heading));
  }
  window.ready = start();
})();
