// Draws each chart from its table: the table is there without this file.
"use strict";

(() => {
  const number = (text) => {
    const plain = text.replaceAll(",", "").trim();
    return plain === "" ? null : Number(plain);
  };

  const readTable = (table) => {
    const heads = [...table.tHead.rows[0].cells].slice(1);
    const rows = [...table.tBodies[0].rows];
    const series = heads
      .map((head, index) => ({ head, values: rows.map((row) => number(row.cells[index + 1].textContent)) }))
      .filter(({ head }) => head.dataset.color);
    return {
      summary: table.caption.textContent,
      labels: rows.map((row) => row.cells[0].textContent.trim()),
      links: rows.map((row) => row.querySelector("a")?.href),
      series,
    };
  };

  // A canvas knows no custom properties: an element has to say what they come to.
  const probe = document.createElement("i");
  const computed = (property) => {
    probe.style.color = `var(${property})`;
    return getComputedStyle(probe).color;
  };
  const markColor = (name) => {
    probe.className = `k-${name}`;
    return computed("--k");
  };

  const withAlpha = (rgb, alpha) => rgb.replace(/rgb\((.*)\)/, `rgba($1, ${alpha})`);

  // A bar narrows a list to its time, and its color to what that stands for.
  const linkOf = (row, column) => {
    if (!row || !column) return row;
    const both = new URL(row);
    for (const [name, value] of new URL(column, document.baseURI).searchParams) {
      if (!both.searchParams.has(name)) both.searchParams.append(name, value);
    }
    return both.href;
  };

  const marksOf = (node) => node.dataset.marks.split("|").filter(Boolean).map((text) => {
    const [at, ...words] = text.split(" ");
    return { at: Number(at), name: words.join(" ") };
  });

  const marksPlugin = (marks, isUpright) => ({
    id: "marks",
    afterDatasetsDraw(chart) {
      const { ctx, chartArea: area, scales } = chart;
      ctx.save();
      ctx.setLineDash(isUpright ? [4, 3] : [2, 4]);
      ctx.lineWidth = 1.5;
      ctx.font = `12px ${Chart.defaults.font.family}`;
      ctx.strokeStyle = ctx.fillStyle = chart.options.marks;
      marks.forEach(({ at, name }, index) => {
        ctx.beginPath();
        if (isUpright) {
          // A category scale has places for whole numbers only.
          const x = area.left + ((at + 0.5) * area.width) / chart.data.labels.length;
          const fits = x + 5 + ctx.measureText(name).width < area.right;
          ctx.moveTo(x, area.top);
          ctx.lineTo(x, area.bottom);
          ctx.textAlign = fits ? "left" : "right";
          ctx.fillText(name, x + (fits ? 5 : -5), area.top + 10 + 14 * index);
        } else {
          const y = scales.y.getPixelForValue(at);
          ctx.moveTo(area.left, y);
          ctx.lineTo(area.right, y);
        }
        ctx.stroke();
      });
      ctx.restore();
    },
  });

  const isAlone = ({ dataset, dataIndex }) =>
    dataset.data[dataIndex - 1] == null && dataset.data[dataIndex + 1] == null;

  const datasetOf = (kind, { head, values }, index) => {
    const shared = { label: head.textContent, data: values };
    if (kind !== "lines") {
      return { ...shared, barPercentage: 1, categoryPercentage: kind === "stack" ? 0.76 : 0.9 };
    }
    return {
      ...shared,
      borderWidth: 2,
      borderDash: index === 2 ? [5, 4] : [],
      pointRadius: (context) => (isAlone(context) ? 2.5 : 0),
      pointHoverRadius: 4,
    };
  };

  const draw = (node) => {
    const table = document.getElementById(node.dataset.table);
    const { summary, labels, links, series } = readTable(table);
    const kind = node.dataset.chart;
    const marks = marksOf(node);
    const canvas = document.createElement("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", summary);
    node.append(canvas);
    const unit = kind === "lines" ? " ms" : "";

    const chart = new Chart(canvas, {
      type: kind === "lines" ? "line" : "bar",
      data: { labels, datasets: series.map((each, index) => datasetOf(kind, each, index)) },
      options: {
        animation: false,
        maintainAspectRatio: false,
        normalized: true,
        interaction: { mode: "index", intersect: false },
        scales: {
          x: {
            stacked: kind === "stack",
            grid: { display: false },
            ticks: {
              maxRotation: 0,
              autoSkipPadding: 18,
              callback: (_value, index) => (kind === "bars" ? labels[index].split(" ")[0] : labels[index]),
            },
          },
          y: {
            stacked: kind === "stack",
            beginAtZero: true,
            suggestedMax: kind === "lines" ? marks[0]?.at * 1.05 : undefined,
            border: { display: false },
            ticks: { maxTicksLimit: 5, precision: kind === "bars" ? 0 : undefined },
          },
        },
        plugins: {
          legend: { display: false },
          tooltip: {
            boxWidth: 10,
            boxHeight: 10,
            boxPadding: 6,
            padding: 10,
            usePointStyle: false,
            filter: (item) => kind !== "stack" || item.raw,
            callbacks: {
              label: (item) => `${item.dataset.label}  ${item.raw.toLocaleString("en")}${unit}`,
              footer: (items) => (kind === "stack" && items.length > 1
                ? `Total  ${items.reduce((sum, item) => sum + item.raw, 0).toLocaleString("en")}` : ""),
            },
          },
        },
        onHover: ({ native }, items) => {
          native.target.style.cursor = items.length && links[items[0].index] ? "pointer" : "";
        },
        onClick: (event) => {
          const [hit] = chart.getElementsAtEventForMode(event.native, "nearest", { intersect: true }, false);
          const [near] = chart.getElementsAtEventForMode(event.native, "index", { intersect: false }, false);
          const at = hit ?? near;
          const href = at && linkOf(links[at.index], hit && series[hit.datasetIndex].head.dataset.href);
          if (href) location.assign(href);
        },
      },
      plugins: [marksPlugin(marks, kind === "bars")],
    });
    return { chart, series };
  };

  const color = ({ chart, series }) => {
    const text = computed("--text-3");
    const { options } = chart;
    chart.data.datasets.forEach((dataset, index) => {
      const mark = markColor(series[index].head.dataset.color);
      dataset.backgroundColor = mark;
      dataset.borderColor = mark;
      dataset.pointBackgroundColor = mark;
      if (chart.config.type === "bar") dataset.hoverBackgroundColor = withAlpha(mark, 0.8);
    });
    for (const axis of [options.scales.x, options.scales.y]) axis.ticks.color = text;
    options.scales.y.grid = { color: computed("--border"), drawTicks: false };
    options.scales.x.border = { color: computed("--border-strong") };
    options.marks = computed("--text-2");
    Object.assign(options.plugins.tooltip, {
      backgroundColor: computed("--surface"),
      borderColor: computed("--border-strong"),
      borderWidth: 1,
      multiKeyBackground: computed("--surface"),
      titleColor: computed("--text"),
      bodyColor: computed("--text"),
      footerColor: computed("--text"),
    });
    chart.update();
  };

  probe.hidden = true;
  document.body.append(probe);
  Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
  Chart.defaults.font.size = 12;
  Chart.defaults.plugins.colors.enabled = false;
  const drawn = [...document.querySelectorAll("[data-chart]")].map(draw);
  const colorAll = () => drawn.forEach(color);
  colorAll();

  new MutationObserver(colorAll).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", colorAll);
  document.fonts?.ready.then(colorAll);

  // Paper is white and narrower than most screens.
  const { dataset } = document.documentElement;
  let theme = dataset.theme;
  addEventListener("beforeprint", () => {
    theme = dataset.theme;
    dataset.theme = "light";
    colorAll();
    for (const { chart } of drawn) chart.resize(640, 180);
  });
  addEventListener("afterprint", () => {
    dataset.theme = theme;
    colorAll();
    for (const { chart } of drawn) chart.resize();
  });
})();
