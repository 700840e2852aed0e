<?php
// As much of a framework's request as CallbackController needs.

final class Request
{
    public function __construct(private mixed $json)
    {
    }

    /** A value by its path, such as data.ref_id; null if it is not there. */
    public function input(string $path): mixed
    {
        $value = $this->json;
        foreach (explode('.', $path) as $name) {
            $value = $value[$name] ?? null;
        }

        return $value;
    }
}
