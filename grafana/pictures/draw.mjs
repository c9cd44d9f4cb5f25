// SPDX-License-Identifier: Apache-2.0
// Draws panels of the committed dashboards with Grafana's own UI library and a Prometheus' data, and saves PNGs.
//
//   node draw.mjs PROMETHEUS_URL DASHBOARDS FOLDER
//
// draw.sh does all of it, from the runs to the pictures.
//
// It is no Grafana: plugins are no part of that library, so heatmaps, state timelines and XY charts cannot be drawn, and queries
// are interpolated here, the way Grafana does it.
import { mkdirSync, readFileSync } from "node:fs";
import { dirname, extname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { chromium } from "playwright-core";
import { PICTURES } from "./pictures.mjs";

const [PROMETHEUS, DASHBOARDS, FOLDER] = process.argv.slice(2);
const HERE = dirname(fileURLToPath(import.meta.url));
const ORIGIN = "http://pictures.invalid";
const SCRAPE_SECONDS = 5;
const EVERYTHING = ".+";
const TYPES = { ".svg": "image/svg+xml", ".js": "text/javascript", ".css": "text/css" };

async function ask(path, parameters) {
  const answer = await fetch(`${PROMETHEUS}/api/v1/${path}`, { method: "POST", body: new URLSearchParams(parameters) });
  const body = await answer.json();
  if (body.status !== "success") throw new Error(`${parameters.query}: ${body.error}`);
  return body.data.result;
}

/** The seconds from the first sight of the runs, in the last hours, to some time after the last step. */
async function timeOf(run) {
  const rows = await ask("query", { query: `training_last_step_timestamp_seconds{run=~"${run}"}[6h]` });
  const points = rows.flatMap((row) => row.values);
  if (!points.length) throw new Error(`this Prometheus has seen no run ${run}`);
  const last = Math.max(...points.map(([, step]) => Number(step)));
  return { from: Math.min(...points.map(([at]) => at)) - 15, to: Math.min(last + 20, Date.now() / 1000) };
}

function interpolated(expression, run, range, step) {
  const values = {
    run,
    __rate_interval: `${Math.max(step + SCRAPE_SECONDS, 4 * SCRAPE_SECONDS)}s`,
    __interval: `${step}s`,
    __range: `${Math.round(range.to - range.from)}s`,
  };
  return expression.replace(/\$\{?(\w+)\}?/g, (_, name) => values[name] ?? EVERYTHING);
}

async function answered(panel, target, run, range) {
  const wanted = (range.to - range.from) / (panel.maxDataPoints ?? 600);
  const step = Math.max(Math.round(wanted), SCRAPE_SECONDS);
  const query = interpolated(target.expr, run, range, step);
  const rows = target.instant
    ? await ask("query", { query, time: range.to })
    : await ask("query_range", { query, start: range.from, end: range.to, step });
  return { refId: target.refId, legend: target.legendFormat, table: target.format === "table", step, rows };
}

async function panelsOf(picture, run, range) {
  const dashboard = JSON.parse(readFileSync(join(DASHBOARDS, `${picture.dashboard}.json`)));
  const all = dashboard.panels.flatMap((panel) => [panel, ...(panel.panels ?? [])]);
  const chosen = picture.panels.map((id) => all.find((panel) => panel.id === id && panel.type !== "row"));
  return Promise.all(
    chosen.map(async (panel) => ({
      panel,
      answers: await Promise.all(panel.targets.map((target) => answered(panel, target, run, range))),
    })),
  );
}

async function bundled() {
  const { outputFiles } = await build({
    entryPoints: [join(HERE, "page.jsx")],
    outdir: join(HERE, "out"),
    bundle: true,
    write: false,
    jsx: "automatic",
    define: { "process.env.NODE_ENV": '"production"' },
    loader: { ".svg": "dataurl", ".ttf": "dataurl", ".woff": "dataurl", ".woff2": "dataurl", ".png": "dataurl" },
    logLevel: "error",
  });
  return Object.fromEntries(outputFiles.map((file) => [extname(file.path), file.text]));
}

/** Answers the page's requests: itself, and the icons that the library looks up by address. */
function served(files, drawn) {
  const page = `<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="/page.css"><div id="root"></div>
<script>window.DRAWN = ${JSON.stringify(drawn).replaceAll("<", "\\u003c")}</script><script src="/page.js"></script>`;
  return (route) => {
    const path = new URL(route.request().url()).pathname;
    if (path === "/") return route.fulfill({ contentType: "text/html", body: page });
    const type = extname(path);
    if (files[type]) return route.fulfill({ contentType: TYPES[type], body: files[type] });
    const icon = path.match(/\/img\/icons\/.*\.svg$/);
    if (!icon) return route.abort();
    return route.fulfill({ contentType: TYPES[type], path: join(HERE, "node_modules/@grafana/ui/dist/public", icon[0]) });
  };
}

async function draw(browser, files, drawn, path) {
  const page = await browser.newPage({ viewport: { width: drawn.width, height: 400 }, deviceScaleFactor: 1 });
  page.on("pageerror", (error) => console.error(path, error.message));
  await page.route("**", served(files, drawn));
  await page.goto(ORIGIN);
  await page.waitForSelector("#root [data-drawn]");
  await page.waitForTimeout(1500); // charts draw themselves in later frames
  await page.locator("#root").screenshot({ path });
  await page.close();
  console.log(path);
}

mkdirSync(FOLDER, { recursive: true });
const files = await bundled();
// It sees nothing of the net (every request is answered here), and in a container it cannot have a sandbox.
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ["--no-sandbox"] });
try {
  for (const [name, picture] of Object.entries(PICTURES)) {
    const run = picture.run ?? EVERYTHING;
    const range = await timeOf(run);
    const panels = await panelsOf(picture, run, range);
    await draw(browser, files, { width: picture.width, range, panels }, join(FOLDER, `${name}.png`));
  }
} finally {
  await browser.close();
}
