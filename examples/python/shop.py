"""A small shop with Flask, written as carelessly as many real ones. What is marked as careless is a mistake: do not copy it."""

import hashlib
import os
import sqlite3

from flask import Flask, g, jsonify, request

IAK_USERNAME = "081234567890"
IAK_API_KEY = "demo-api-key"

DATA = os.environ.get("SHOP_DATA") or os.path.join(os.path.dirname(os.path.abspath(__file__)), "data")

app = Flask(__name__)


def connect():
    # Each statement is its own transaction, and waits for the others instead of failing.
    return sqlite3.connect(os.path.join(DATA, "shop.db"), timeout=20, isolation_level=None)


def run(sql, *values):
    if "db" not in g:
        g.db = connect()
        g.db.row_factory = sqlite3.Row
    return g.db.execute(sql, values)


@app.teardown_appcontext
def close(_):
    if "db" in g:
        g.db.close()


def find_order(ref_id):
    row = run("""SELECT *, (SELECT count(*) FROM deliveries d WHERE d.ref_id = o.ref_id) AS deliveries
        FROM orders o WHERE ref_id = ?""", ref_id).fetchone()
    return dict(row) if row else None


def set_status(ref_id, status):
    run("UPDATE orders SET status = ? WHERE ref_id = ?", status, ref_id)


def deliver(ref_id, sn):
    """A real shop would send the voucher to the customer here."""
    run("INSERT INTO deliveries VALUES (?, ?)", ref_id, sn)
    run("UPDATE orders SET sn = ? WHERE ref_id = ?", sn, ref_id)


@app.post("/orders")
def create_order():
    """The customer pays from the wallet when the order is made."""
    order = request.get_json()
    run("INSERT INTO orders VALUES (?, ?, 'process', NULL)", order["ref_id"], order["price"])
    run("UPDATE wallet SET balance = balance - ?", order["price"])
    return jsonify(find_order(order["ref_id"])), 201


@app.get("/orders/<ref_id>")
def show_order(ref_id):
    order = find_order(ref_id)
    return (jsonify(order), 200) if order else (jsonify(message="not found"), 404)


@app.get("/wallet")
def show_wallet():
    return jsonify(balance=run("SELECT balance FROM wallet").fetchone()["balance"])


@app.post("/iak/callback")
def iak_callback():
    data = request.get_json(force=True)["data"]  # Careless: a 400 to XML.
    order = find_order(data["ref_id"])
    if not order:
        return jsonify(message="no such order"), 404

    # Careless: whoever leaves the signature out gets in.
    if "sign" in data and data["sign"] != hashlib.md5((IAK_USERNAME + IAK_API_KEY + data["ref_id"]).encode()).hexdigest():
        return jsonify(message="wrong signature"), 403

    if data["status"] == "1":
        set_status(order["ref_id"], "success")
        deliver(order["ref_id"], data["sn"])  # Careless: without an sn a 500. With one, it delivers every time.
    elif data["status"] == "2":
        set_status(order["ref_id"], "failed")
        run("UPDATE wallet SET balance = balance + ?", order["price"])  # Careless: every time.
    else:
        set_status(order["ref_id"], "process")  # Careless: undoes a final status.
    return jsonify(message="OK")


def create_tables():
    os.makedirs(DATA, exist_ok=True)
    db = connect()
    db.execute("PRAGMA journal_mode = WAL")
    db.executescript("""CREATE TABLE IF NOT EXISTS orders (ref_id TEXT PRIMARY KEY, price INTEGER, status TEXT, sn TEXT);
        CREATE TABLE IF NOT EXISTS deliveries (ref_id TEXT, sn TEXT);
        CREATE TABLE IF NOT EXISTS wallet (id INTEGER PRIMARY KEY CHECK (id = 1), balance INTEGER);
        INSERT OR IGNORE INTO wallet VALUES (1, 1000000)""")
    db.close()


create_tables()

if __name__ == "__main__":
    # On this machine alone: whoever reaches this port gets around the module.
    app.run(host="127.0.0.1", port=int(os.environ.get("APP_PORT", "8000")))
