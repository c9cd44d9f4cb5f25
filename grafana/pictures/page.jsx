// SPDX-License-Identifier: Apache-2.0
import { useEffect, useState } from "react";
import { createRoot } from "react-dom/client";
import { firstValueFrom } from "rxjs";
import {
  applyFieldOverrides, cacheFieldDisplayNames, createDataFrame, createTheme, dateTime, FieldType, getDisplayValueAlignmentFactors,
  getFieldDisplayValues, Registry, standardTransformers, standardTransformersRegistry, ThemeContext,
  transformDataFrame, VizOrientation,
} from "@grafana/data";
import { BarGauge, BigValue, GlobalStyles, PanelChrome, TimeSeries, VizRepeater } from "@grafana/ui";
import { TableNG } from "@grafana/ui/unstable";
import "@fontsource/inter/400.css";
import "@fontsource/inter/500.css";

const { width: WIDTH, range: SECONDS, panels: PANELS } = window.DRAWN;
const COLUMNS = 24, CELL = 30, GAP = 8;
const THEME = createTheme({ colors: { mode: "dark" } });
const RANGE = { from: dateTime(SECONDS.from * 1000), to: dateTime(SECONDS.to * 1000) };
RANGE.raw = RANGE;
const CUSTOM = "custom.";
const PROPERTIES = ["unit", "decimals", "min", "max", "displayName", "noValue", "color", "mappings", "thresholds", "links", "filterable"];

const asIs = (text) => text;
const number = (text) => (text === "+Inf" ? Infinity : text === "-Inf" ? -Infinity : Number(text));
const named = (legend, labels) => legend.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, label) => labels[label] ?? "");

/** What a panel's field config may set; in Grafana each panel plugin says so, and those are not in the library. */
function configure({ defaults, overrides }) {
  const set = [
    ...Object.keys(defaults.custom ?? {}).map((key) => CUSTOM + key),
    ...overrides.flatMap((rule) => rule.properties.map(({ id }) => id)).filter((id) => id.startsWith(CUSTOM)),
  ];
  return [...PROPERTIES, ...new Set(set)].map((id) => {
    const isCustom = id.startsWith(CUSTOM);
    const path = isCustom ? id.slice(CUSTOM.length) : id;
    return { id, path, isCustom, name: id, settings: {}, process: asIs, shouldApply: () => true };
  });
}

/** A point for each step of the time shown, as Grafana makes them for a chart: nothing where there is none or it is not finite. */
function filled(points, step) {
  const known = new Map(points.map(([at, text]) => [Math.round((at - SECONDS.from) / step), number(text)]));
  return Array.from({ length: Math.floor((SECONDS.to - SECONDS.from) / step) + 1 }, (_, index) => {
    const value = known.get(index);
    return [SECONDS.from + index * step, Number.isFinite(value) ? value : null];
  });
}

function seriesFrames({ refId, legend, step, rows }) {
  return rows.map(({ metric, value, values }) => {
    const { __name__: _, ...labels } = metric;
    const points = values ? filled(values, step) : [[value[0], number(value[1])]];
    const name = named(legend, metric);
    const config = { displayNameFromDS: name };
    return createDataFrame({
      name,
      refId,
      fields: [
        { name: "Time", type: FieldType.time, config: {}, values: points.map(([at]) => at * 1000) },
        { name: "Value", type: FieldType.number, labels, config, values: points.map(([, one]) => one) },
      ],
    });
  });
}

function tableFrame({ refId, rows }) {
  const names = [...new Set(rows.flatMap(({ metric }) => Object.keys(metric)))];
  const column = (name) => ({ name, type: FieldType.string, config: {}, values: rows.map(({ metric }) => metric[name] ?? "") });
  return createDataFrame({
    refId,
    fields: [
      { name: "Time", type: FieldType.time, config: {}, values: rows.map(({ value: [at] }) => at * 1000) },
      ...names.map(column),
      { name: `Value #${refId}`, type: FieldType.number, config: {}, values: rows.map(({ value: [, text] }) => number(text)) },
    ],
  });
}

async function framesOf({ panel, answers }) {
  const raw = answers.flatMap((answer) => (answer.table ? [tableFrame(answer)] : seriesFrames(answer)));
  const made = await firstValueFrom(transformDataFrame(panel.transformations ?? [], raw));
  const fieldConfigRegistry = new Registry(() => configure(panel.fieldConfig));
  const frames = applyFieldOverrides({
    data: made, fieldConfig: panel.fieldConfig, fieldConfigRegistry, replaceVariables: asIs, theme: THEME, timeZone: "utc",
  });
  cacheFieldDisplayNames(frames);
  return frames;
}

function Values({ panel, frames, width, height, draw, alignment }) {
  const { options, fieldConfig } = panel;
  const values = () =>
    getFieldDisplayValues({ data: frames, fieldConfig, reduceOptions: options.reduceOptions, replaceVariables: asIs, theme: THEME });
  return (
    <VizRepeater
      {...{ width, height, getValues: values, source: frames, renderCounter: 1, autoGrid: true, itemSpacing: 3 }}
      orientation={options.orientation ?? VizOrientation.Auto}
      getAlignmentFactors={alignment ? getDisplayValueAlignmentFactors : undefined}
      minVizHeight={options.minVizHeight} maxVizHeight={options.maxVizHeight}
      renderValue={draw}
    />
  );
}

const KINDS = {
  stat: (given) => (
    <Values {...given} draw={({ value, width, height, count }) => (
      <BigValue value={value.display} {...given.panel.options} {...{ width, height, count, theme: THEME }} />
    )} />
  ),
  bargauge: (given) => (
    <Values {...given} alignment draw={({ value, width, height, orientation, alignmentFactors, count }) => (
      <BarGauge
        {...{ width, height, orientation, alignmentFactors, theme: THEME, value: value.display, field: value.field, itemSpacing: 10 }}
        display={value.view?.getFieldDisplayProcessor(value.colIndex)} lcdCellWidth={12} isOverflow={false}
        displayMode={given.panel.options.displayMode} showUnfilled={given.panel.options.showUnfilled}
        valueDisplayMode={given.panel.options.valueMode} namePlacement={given.panel.options.namePlacement}
      />
    )} />
  ),
  timeseries: ({ panel, frames, width, height }) => (
    <TimeSeries {...{ frames, width, height, timeRange: RANGE, timeZone: "utc", legend: panel.options.legend, options: panel.options }} />
  ),
  table: ({ panel, frames, width, height }) => (
    <TableNG {...{ data: frames[0], width, height, cellHeight: panel.options.cellHeight, sortBy: panel.options.sortBy }}
      fieldConfig={panel.fieldConfig} enableVirtualization={false} timeRange={RANGE} />
  ),
};

function Panel({ shown, place }) {
  const { panel, frames } = shown;
  const Kind = KINDS[panel.type];
  const empty = !frames.some((frame) => frame.length);
  return (
    <div style={{ position: "absolute", ...place }}>
      <PanelChrome title={panel.title} width={place.width} height={place.height} description={panel.description}>
        {(width, height) =>
          empty ? <div style={{ height, display: "grid", placeItems: "center" }}>{panel.fieldConfig.defaults.noValue}</div>
            : <Kind {...{ panel, frames, width, height }} />
        }
      </PanelChrome>
    </div>
  );
}

/** Panels in their own widths, from left to right, those of a line alike high: in their own places there would be holes. */
function placed(shown) {
  const column = (WIDTH - GAP) / COLUMNS;
  const lines = [[]];
  const widthOf = (line) => line.reduce((sum, { w }) => sum + w, 0);
  for (const { panel: { gridPos } } of shown) {
    if (widthOf(lines.at(-1)) + gridPos.w > COLUMNS) lines.push([]);
    lines.at(-1).push(gridPos);
  }
  let top = GAP;
  return lines.flatMap((line) => {
    const height = Math.max(...line.map(({ h }) => h)) * (CELL + GAP) - GAP;
    const places = line.map(({ w }, at) => ({ top, height, left: GAP + widthOf(line.slice(0, at)) * column, width: w * column - GAP }));
    top += height + GAP;
    return places;
  });
}

function Page() {
  const [shown, setShown] = useState(null);
  useEffect(() => {
    Promise.all(
      PANELS.map(async (one) => ({ panel: one.panel, frames: await framesOf(one) })),
    ).then(setShown);
  }, []);
  if (!shown) return null;
  const places = placed(shown);
  const height = GAP + Math.max(...places.map(({ top, height }) => top + height));
  return (
    <ThemeContext.Provider value={THEME}>
      <GlobalStyles />
      <div data-drawn style={{ position: "relative", width: WIDTH, height, background: THEME.colors.background.canvas }}>
        {shown.map((one, at) => <Panel key={at} shown={one} place={places[at]} />)}
      </div>
    </ThemeContext.Provider>
  );
}

standardTransformersRegistry.setInit(() =>
  [...new Set(Object.values(standardTransformers))].map((made) => ({ ...made, transformation: async () => made })),
);
createRoot(document.getElementById("root")).render(<Page />);
