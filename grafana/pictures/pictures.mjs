// SPDX-License-Identifier: Apache-2.0
/** Which panels are drawn together, by their ids: those for which Grafana's UI library has what it takes. */
export const PICTURES = {
  "training-run": {
    dashboard: "training-run",
    run: "baseline",
    width: 1600,
    panels: [1, 2, 3, 4, 5, 6, 7, 8, 101, 102, 103, 201, 301, 304, 302],
  },
  "training-run-more": {
    dashboard: "training-run",
    run: "baseline",
    width: 1600,
    panels: [203, 204, 205, 206, 401, 402, 503, 504, 505],
  },
  "training-fleet": {
    dashboard: "training-fleet",
    width: 1600,
    panels: [1, 2, 3, 4, 5, 6, 10, 12, 14],
  },
};
