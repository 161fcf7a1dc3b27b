"""The dashboard: one page without any outside asset, which polls /status of the node it came from."""

from __future__ import annotations

from typing import Final

PAGE: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>NebulaDB</title>
<style>
  :root { color-scheme: light dark; --ink: #1c2333; --soft: #68718a; --paper: #f6f7fb; --card: #fff; --line: #e3e6ef;
          --lead: #5b4be0; --good: #15825a; --bad: #c4302b; }
  @media (prefers-color-scheme: dark) {
    :root { --ink: #e6e9f2; --soft: #939cb5; --paper: #10131c; --card: #191e2b; --line: #2a3144;
            --lead: #9d92ff; --good: #4cc796; --bad: #ff7a73; } }
  * { box-sizing: border-box; }
  body { margin: 0 auto; padding: 2rem 1.2rem; max-width: 68rem; background: var(--paper); color: var(--ink);
         font: 15px/1.5 system-ui, sans-serif; }
  header { display: flex; flex-wrap: wrap; gap: .3rem 1rem; align-items: baseline; margin-bottom: 1.2rem; }
  h1 { margin: 0; font-size: 1.5rem; } h1 span { color: var(--lead); }
  header p { margin: 0; color: var(--soft); }
  .card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.2rem;
          margin-bottom: 1rem; overflow-x: auto; }
  dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .8rem 1.2rem; margin: 0; }
  dt { color: var(--soft); font-size: .8rem; } dd { margin: 0; overflow-wrap: anywhere; }
  table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
  th { text-align: left; color: var(--soft); font-size: .8rem; font-weight: 500; }
  th, td { padding: .4rem .9rem .4rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
  tr:last-child td { border-bottom: 0; } .number { text-align: right; }
  .leader { color: var(--lead); font-weight: 600; }
  .good { color: var(--good); } .bad { color: var(--bad); }
</style>
<header><h1><span>Nebula</span>DB</h1><p id="where">…</p><p id="health"></p></header>
<section class="card"><dl id="facts"></dl></section>
<section class="card"><table><thead><tr><th>keyspace<th>group<th>role<th>leader<th class="number">term
  <th class="number">revision<th class="number">committed<th class="number">applied<th class="number">entries/s
</thead><tbody id="groups"></tbody></table></section>
<section class="card" id="alarms"></section>
<script>
  const at = id => document.getElementById(id);
  const cell = (row, text, kind) => {
    const td = row.insertCell(); td.textContent = text; if (kind) td.className = kind;
  };
  const fact = (name, value) => {
    const box = document.createElement('div'), dt = document.createElement('dt'), dd = document.createElement('dd');
    dt.textContent = name; dd.textContent = value; box.append(dt, dd); at('facts').append(box);
  };
  let before = {}, since = 0;
  function show(status) {
    const now = performance.now(), seconds = (now - since) / 1000, applied = {};
    document.title = status.name + ' · NebulaDB';
    at('where').textContent = `node ${status.name} · version ${status.version}`;
    at('facts').replaceChildren();
    for (const [name, value] of Object.entries(status)) {
      if (['name', 'version', 'groups', 'alarms'].includes(name)) continue;
      if (value && typeof value === 'object') {
        for (const [part, text] of Object.entries(value)) fact(`${name} ${part}`, String(text));
      } else fact(name.replaceAll('_', ' '), String(value));
    }
    at('groups').replaceChildren();
    for (const group of status.groups || []) {
      applied[group.group] = group.applied;
      const row = at('groups').insertRow(), last = before[group.group];
      const rate = last === undefined ? '' : Math.max(0, (group.applied - last) / seconds).toFixed(1);
      cell(row, group.keyspace || 'meta'); cell(row, group.group);
      cell(row, group.role, group.role === 'leader' ? 'leader' : ''); cell(row, group.leader || 'none');
      for (const key of ['term', 'revision', 'committed', 'applied']) cell(row, group[key] ?? '', 'number');
      cell(row, rate, 'number');
    }
    before = applied; since = now;
    const alarms = status.alarms || [];
    at('alarms').textContent = alarms.length ? 'Alarms: ' + alarms.map(String).join('; ') : 'No alarms.';
    at('alarms').className = alarms.length ? 'card bad' : 'card';
  }
  async function poll() {
    try {
      show(await (await fetch('status', { cache: 'no-store' })).json());
      at('health').textContent = 'answers'; at('health').className = 'good';
    } catch (error) {
      at('health').textContent = 'does not answer'; at('health').className = 'bad';
    }
    setTimeout(poll, 1000);
  }
  poll();
</script>
</html>
"""
