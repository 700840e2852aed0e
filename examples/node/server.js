// A small shop with Express, written as carelessly as many real ones. What is marked as careless is a mistake: do not copy it.
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const express = require('express');
const { Database } = require('node-sqlite3-wasm'); // SQLite without a compiler

const dir = process.env.SHOP_DATA || path.join(__dirname, 'data');
fs.mkdirSync(dir, { recursive: true });
const db = new Database(path.join(dir, 'shop.db'));
db.exec(`CREATE TABLE IF NOT EXISTS orders (ref_id TEXT PRIMARY KEY, price INTEGER, status TEXT, sn TEXT);
  CREATE TABLE IF NOT EXISTS deliveries (ref_id TEXT, sn TEXT);
  CREATE TABLE IF NOT EXISTS wallet (id INTEGER PRIMARY KEY CHECK (id = 1), balance INTEGER);
  INSERT OR IGNORE INTO wallet VALUES (1, 1000000)`);

const findOrder = (refID) => db.get(`SELECT *, (SELECT count(*) FROM deliveries d WHERE d.ref_id = o.ref_id) AS deliveries
  FROM orders o WHERE ref_id = ?`, [refID]);
const setStatus = (refID, status) => db.run('UPDATE orders SET status = ? WHERE ref_id = ?', [status, refID]);

// A real shop would send the voucher to the customer here.
function deliver(refID, sn) {
  db.run('INSERT INTO deliveries VALUES (?, ?)', [refID, sn]);
  db.run('UPDATE orders SET sn = ? WHERE ref_id = ?', [sn, refID]);
}

const app = express();
app.use(express.json());

// The customer pays from the wallet when the order is made.
app.post('/orders', (req, res) => {
  db.run('INSERT INTO orders VALUES (?, ?, ?, NULL)', [req.body.ref_id, req.body.price, 'process']);
  db.run('UPDATE wallet SET balance = balance - ?', [req.body.price]);
  res.status(201).json(findOrder(req.body.ref_id));
});

app.get('/orders/:refID', (req, res) => {
  const order = findOrder(req.params.refID);
  res.status(order ? 200 : 404).json(order || { message: 'not found' });
});

app.get('/wallet', (req, res) => res.json(db.get('SELECT balance FROM wallet')));

app.post('/iak/callback', (req, res) => {
  // Careless: XML has no data here, a TypeError and a 500. The signature is not looked at.
  const { ref_id: refID, status, sn } = req.body.data;
  const order = findOrder(refID);
  if (!order) return res.status(404).json({ message: 'no such order' });

  if (status === '1') {
    setStatus(refID, 'success');
    deliver(refID, sn.trim()); // Careless: without an sn a 500. With one, it delivers every time.
  } else if (status === '2') {
    setStatus(refID, 'failed');
    db.run('UPDATE wallet SET balance = balance + ?', [order.price]); // Careless: every time.
  } else {
    setStatus(refID, 'process'); // Careless: undoes a final status.
  }
  res.json({ message: 'OK' });
});

// On this machine alone: whoever reaches this port gets around the module.
const server = app.listen(process.env.APP_PORT || 3000, process.env.APP_HOST || '127.0.0.1', (err) => {
  if (err) throw err;
  console.log(`the shop listens on ${server.address().address}:${server.address().port}`);
});

// Ctrl-C gives the lock of the database file back.
for (const signal of ['SIGINT', 'SIGTERM']) {
  process.on(signal, () => {
    db.close();
    process.exit();
  });
}
