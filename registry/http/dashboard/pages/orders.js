// Orders for workers: run, quiet, stop.

import { api, may } from "../lib/api.js";
import { visible } from "../lib/format.js";
import { Icon } from "../lib/icons.js";
import { Segments } from "../lib/parts.js";
import { html, useState } from "../lib/preact.js";
import { toast } from "../lib/toast.js";

export const ORDERS = [
  { value: "run", text: "Run", told: "takes tasks again" },
  { value: "quiet", text: "Quiet", told: "takes no new tasks" },
  { value: "stop", text: "Stop", told: "finishes what it holds and ends" },
];

export async function giveOrder(worker, order) {
  try {
    const { audit } = await api.send("POST", api.path`/api/workers/${worker}`, { body: { order } });
    toast({ text: `${visible(worker)} ${ORDERS.find((one) => one.value === order).told}.`, audit });
  } catch (error) {
    toast({ text: error.message });
  }
}

/** `folds`: shows the order alone until somebody points at it or its row, or the focus is in it. */
export function OrderControl({ worker, order, reload, folds = false }) {
  const [given, setGiven] = useState(null);
  if (!may("operate")) return html`<span class="quiet">${ORDERS.find((one) => one.value === order)?.text}</span>`;
  const give = async (value) => {
    setGiven(value);
    await giveOrder(worker, value);
    setGiven(null);
    reload();
  };
  const value = given ?? order;
  const control = html`<${Segments} label=${`Order for ${visible(worker)}`} options=${ORDERS} value=${value} onChange=${give} />`;
  if (!folds) return control;
  return html`<span class="order-control"><span class="rest" aria-hidden="true">${ORDERS.find((one) => one.value === value)?.text}<${Icon} name="down" /></span>${control}</span>`;
}
