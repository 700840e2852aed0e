<?php
// A small shop in plain PHP, written as carelessly as many real ones. What is marked as careless is a mistake: do not copy it.

require __DIR__ . '/../src/shop.php';
require __DIR__ . '/../src/Request.php';
require __DIR__ . '/../src/CallbackController.php';

const IAK_USERNAME = '081234567890';
const IAK_API_KEY = 'demo-api-key';

function iak_callback(mixed $json): void
{
    // Careless: XML is null here, and the answer is a success all the same.
    $data = $json['data'] ?? [];
    $order = find_order($data['ref_id'] ?? '');
    if (!$order) {
        answer(['message' => 'OK']);

        return;
    }

    // Careless: == compares true with any text as equal, so "sign":true gets in.
    if (!(($data['sign'] ?? '') == md5(IAK_USERNAME . IAK_API_KEY . $data['ref_id']))) {
        answer(['message' => 'wrong signature'], 403);

        return;
    }

    if ($data['status'] === '1') {
        set_status($order['ref_id'], 'success');
        // Careless: without an sn this is a TypeError, and a 500. With one, it delivers every time.
        deliver($order['ref_id'], $data['sn']);
    } elseif ($data['status'] === '2') {
        set_status($order['ref_id'], 'failed');
        refund($order['price']); // Careless: every time.
    } else {
        set_status($order['ref_id'], 'process'); // Careless: undoes a final status.
    }
    answer(['message' => 'OK']);
}

$path = parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH);
$json = json_decode(file_get_contents('php://input'), true);

switch ($_SERVER['REQUEST_METHOD'] . ' ' . $path) {
    case 'POST /iak/callback':
        iak_callback($json);
        break;
    case 'POST /api/iak/callback':
        answer((new CallbackController())(new Request($json)));
        break;
    case 'POST /orders':
        create_order($json);
        answer(find_order($json['ref_id']), 201);
        break;
    case 'GET /wallet':
        answer(['balance' => run('SELECT balance FROM wallet')->fetchColumn()]);
        break;
    default:
        $order = str_starts_with($path, '/orders/') ? find_order(rawurldecode(substr($path, strlen('/orders/')))) : false;
        answer($order ?: ['message' => 'not found'], $order ? 200 : 404);
}
