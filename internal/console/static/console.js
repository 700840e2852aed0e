'use strict';
// Everything works without this: it refreshes what is on the page, every five seconds, while somebody looks.
(() => {
  const every = 5000;
  const refresh = async () => {
    const main = document.getElementById('main');
    const inUse = main && main.contains(document.activeElement) && document.activeElement !== main;
    if (!main || !main.hasAttribute('data-refresh') || document.hidden || inUse) return;
    try {
      const answer = await fetch(location.href, { headers: { Accept: 'text/html' } });
      if (!answer.ok) return;
      const page = new DOMParser().parseFromString(await answer.text(), 'text/html');
      const fresh = page.getElementById('main');
      if (fresh) main.replaceChildren(...fresh.childNodes);
      const now = page.getElementById('now');
      if (now) document.getElementById('now').textContent = now.textContent;
    } catch { /* the console has ended, or Caddy: the next one tells */ }
  };
  setInterval(refresh, every);
})();
