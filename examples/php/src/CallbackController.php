<?php
// The same careless callback in the style of Laravel: a controller that gets a Request. It is the style alone, Laravel
// itself is not used.

final class CallbackController
{
    public function __invoke(Request $request): array
    {
        // Careless: the signature is not looked at.
        $order = find_order($request->input('data.ref_id') ?? '');
        if (!$order) {
            return ['message' => 'OK']; // Careless: a success, although nothing was done.
        }

        match ($request->input('data.status')) {
            '1' => $this->succeed($order, $request),
            '2' => $this->fail($order),
            default => set_status($order['ref_id'], 'process'), // Careless: undoes a final status.
        };

        return ['message' => 'OK'];
    }

    private function succeed(array $order, Request $request): void
    {
        set_status($order['ref_id'], 'success');
        // Careless: without an sn this is a TypeError, and a 500. With one, it delivers every time.
        deliver($order['ref_id'], $request->input('data.sn'));
    }

    private function fail(array $order): void
    {
        set_status($order['ref_id'], 'failed');
        refund($order['price']); // Careless: every time.
    }
}
