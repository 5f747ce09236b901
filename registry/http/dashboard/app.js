// The page begins here. Each page is a module of its own, loaded when it is first opened.

import { askMe, session } from "./lib/api.js";
import { startKeys } from "./lib/keys.js";
import { startLive } from "./lib/live.js";
import { Failure } from "./lib/parts.js";
import { html, render, useEffect, useErrorBoundary, useState } from "./lib/preact.js";
import { useRoute } from "./lib/router.js";
import { Shell } from "./lib/shell.js";
import { Away, SignIn } from "./lib/signin.js";
import { useStore } from "./lib/store.js";

// What a page module has: `default`, the component, which gets the route; `title(route)`, for the title of the document.
const PAGES = {
  overview: () => import("./pages/overview.js"),
  queue: () => import("./pages/queue.js"),
  task: () => import("./pages/task.js"),
  dead: () => import("./pages/dead.js"),
  workers: () => import("./pages/workers.js"),
  schedules: () => import("./pages/schedules.js"),
  audit: () => import("./pages/audit.js"),
  tokens: () => import("./pages/tokens.js"),
  missing: () => import("./pages/missing.js"),
};

function Page({ route, module }) {
  const [error, reset] = useErrorBoundary();
  if (error) {
    console.error(error);
    return html`<${Failure} error=${{ message: `This page has failed: ${error.message}` }} retry=${reset} />`;
  }
  return html`<${module.default} key=${[route.page, route.queue, route.task].join("/")} route=${route} />`;
}

function App() {
  const { state, me } = useStore(session);
  const route = useRoute();
  const [loaded, setLoaded] = useState({ page: null, module: null, error: null });
  useEffect(() => {
    let isCurrent = true;
    PAGES[route.page]()
      .then((module) => isCurrent && setLoaded({ page: route.page, module, error: null }))
      .catch((error) => isCurrent && setLoaded({ page: route.page, module: null, error }));
    return () => (isCurrent = false);
  }, [route.page]);
  if (state === "out") return html`<${SignIn} />`;
  if (state === "failed") return html`<${Away} />`;
  if (!me) return null;
  if (!me.may.view) {
    return html`<${Shell} title="">
      <h1 class="verdict">This token may not look.</h1>
      <p class="lead">The dashboard needs the right <b>view</b>; the token “${me.name}” has ${me.rights.join(", ")}.</p>
    <//>`;
  }
  const { module, error } = loaded;
  // Until the next page is there, the old one stays.
  const isShown = loaded.page === route.page;
  return html`<${Shell} title=${isShown ? (module?.title?.(route) ?? "") : ""}>
    ${error && html`<${Failure} error=${{ message: "A part of this page did not arrive." }} retry=${() => location.reload()} />`}
    ${isShown && module && html`<${Page} key=${route.page} route=${route} module=${module} />`}
  <//>`;
}

startKeys();
startLive();
askMe();
render(html`<${App} />`, document.getElementById("app"));
