// A real table: heads with aria-sort, one tab stop for all rows, arrows and j k from row to row.
//
//   html`<${Table}
//     label="Queues"
//     columns=${[{key: "name", head: "Queue", width: "grow", sort: "name", cell: (row) => …}, {key: "ready", head: …, width: "w9", num: true, …}]}
//     rows=${held.rows}                    each {row, leaving}, from `useHeld`; `plain(rows)` makes them of rows
//     keyOf=${(row) => row.name}
//     sort="ready" onSort=${(sort) => …}   `sort` of a column: the word for the URL and the API
//     rowClass=${(row) => "…"}
//     opened=${key} detail=${(row) => html`…`}   the row with this key has a second row below, over the whole width
//     hand=${held.hand}
//   />`
//
// `width`: "w5" to "w30", ch; one column is "grow". A cell that opens its row marks the link or button with `data-open`.
// A click beside links and buttons opens the row, too.

import { classes } from "./parts.js";
import { Icon } from "./icons.js";
import { html, useState } from "./preact.js";

export const plain = (rows) => rows.map((row) => ({ row, leaving: false }));

export function Table({ label, columns, rows, keyOf, sort, onSort, rowClass, opened, detail, hand, dense = true, headless = false }) {
  const [stop, setStop] = useState(null);
  const keys = rows.map(({ row }) => keyOf(row));
  const tabStop = keys.includes(stop) ? stop : keys[0];
  const open = (event) => {
    if (event.target.closest("a, button, input, select, label, summary, .detail")) return;
    if (String(getSelection()).length) return;
    event.currentTarget.querySelector("[data-open]")?.click();
  };
  return html`<div class="table-wrap" ...${hand}>
    <table class=${classes("table", !dense && "two-lines")}>
      <caption class="for-readers">${label}</caption>
      <colgroup>
        ${columns.map((column) => html`<col key=${column.key} class=${column.width} />`)}
      </colgroup>
      <thead class=${headless ? "for-readers" : undefined}>
        <tr>
          ${columns.map((column) => html`<${Head} key=${column.key} column=${column} sort=${sort} onSort=${onSort} />`)}
        </tr>
      </thead>
      <tbody>
        ${rows.flatMap(({ row, leaving }, at) => {
          const key = keys[at];
          const isOpen = opened !== undefined && opened === key;
          const look = classes(rowClass?.(row), leaving && "leaving", isOpen && "expanded", "opens");
          const line = html`<tr
            key=${key}
            class=${look}
            data-row
            tabindex=${key === tabStop ? 0 : -1}
            onfocusin=${() => setStop(key)}
            onClick=${open}
          >
            ${columns.map(
              (column) => html`<td key=${column.key} class=${classes(column.num && "num", column.class)}>${column.cell(row, at)}</td>`,
            )}
          </tr>`;
          if (!isOpen || !detail) return [line];
          return [line, html`<tr key=${`${key} detail`} class="detail"><td colspan=${columns.length}>${detail(row)}</td></tr>`];
        })}
      </tbody>
    </table>
  </div>`;
}

function Head({ column, sort, onSort }) {
  const sorted = column.sort && column.sort === sort;
  const content = column.sort && onSort
    ? html`<button type="button" onClick=${() => onSort(column.sort)}>
        ${column.glyph}${column.head}${sorted && html`<${Icon} name="down" />`}
      </button>`
    : html`${column.glyph}${column.head}`;
  if (!column.head && !column.label) return html`<td></td>`;
  return html`<th scope="col" class=${column.num ? "num" : undefined} aria-sort=${sorted ? (column.up ? "ascending" : "descending") : undefined}>
    ${column.head ? content : html`<span class="for-readers">${column.label}</span>`}
  </th>`;
}
