(() => {
  // Named one by one: others of plotly's buttons send the figure to a service of its makers.
  const modeBarButtons = [["toImage"], ["zoom2d", "pan2d", "resetScale2d"]];
  const config = { responsive: true, displaylogo: false, modeBarButtons };
  const plots = [];
  for (const data of document.querySelectorAll("script[data-plot]")) {
    const place = data.nextElementSibling;
    const { data: traces, layout } = JSON.parse(data.textContent);
    Plotly.newPlot(place, traces, layout, config);
    plots.push(place);
    if (layout.xaxis.type !== "log") continue;
    // The marks that suit the whole axis are too few for a part of it.
    place.on("plotly_relayout", (change) => {
      if ("xaxis.range[0]" in change) Plotly.relayout(place, { "xaxis.tickmode": "auto" });
      else if (change["xaxis.autorange"]) Plotly.relayout(place, { "xaxis.tickmode": "array" });
    });
  }
  // Paper is narrower than the window, and plots keep the width that they were drawn with.
  addEventListener("beforeprint", () => {
    for (const plot of plots) Plotly.relayout(plot, { autosize: false, width: 680 });
  });
  addEventListener("afterprint", () => {
    for (const plot of plots) Plotly.relayout(plot, { autosize: true, width: null });
  });
})();
