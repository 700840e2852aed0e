<?php
// The shop's tables, and the pages that make an order and look at it. What a callback does is in
// public/index.php and in CallbackController.php.

function shop(): PDO
{
    static $db;
    if ($db) {
        return $db;
    }
    $dir = getenv('SHOP_DATA') ?: __DIR__ . '/../data';
    $db = new PDO('sqlite:' . $dir . '/shop.db'); // PDO throws on errors since PHP 8
    $db->exec('PRAGMA busy_timeout = 20000');     // wait for another worker instead of failing
    $db->exec('PRAGMA journal_mode = WAL');
    $db->exec('CREATE TABLE IF NOT EXISTS orders (ref_id TEXT PRIMARY KEY, price INTEGER, status TEXT, sn TEXT);
        CREATE TABLE IF NOT EXISTS deliveries (ref_id TEXT, sn TEXT);
        CREATE TABLE IF NOT EXISTS wallet (id INTEGER PRIMARY KEY CHECK (id = 1), balance INTEGER);
        INSERT OR IGNORE INTO wallet VALUES (1, 1000000)');

    return $db;
}

function run(string $sql, array $values = []): PDOStatement
{
    $statement = shop()->prepare($sql);
    $statement->execute($values);

    return $statement;
}

function answer(mixed $value, int $status = 200): void
{
    http_response_code($status);
    header('Content-Type: application/json');
    echo json_encode($value);
}

function find_order(string $ref_id): array|false
{
    return run('SELECT *, (SELECT count(*) FROM deliveries d WHERE d.ref_id = o.ref_id) AS deliveries
        FROM orders o WHERE ref_id = ?', [$ref_id])->fetch(PDO::FETCH_ASSOC);
}

// The customer pays from the wallet when the order is made.
function create_order(array $order): void
{
    run('INSERT INTO orders VALUES (?, ?, ?, NULL)', [$order['ref_id'], $order['price'], 'process']);
    run('UPDATE wallet SET balance = balance - ?', [$order['price']]);
}

function set_status(string $ref_id, string $status): void
{
    run('UPDATE orders SET status = ? WHERE ref_id = ?', [$status, $ref_id]);
}

function refund(int $amount): void
{
    run('UPDATE wallet SET balance = balance + ?', [$amount]);
}

// A real shop would send the voucher to the customer here.
function deliver(string $ref_id, string $sn): void
{
    run('INSERT INTO deliveries VALUES (?, ?)', [$ref_id, $sn]);
    run('UPDATE orders SET sn = ? WHERE ref_id = ?', [$sn, $ref_id]);
}
