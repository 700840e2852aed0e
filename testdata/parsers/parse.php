<?php
// Tells what json_decode reads from JSON documents: as objects, or with the argument "arrays" as arrays. parse.py says
// how.

const NUMBER = '/^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?$/D';

// The same for every number that is equal, whether an int or a float.
function number($value) {
    if (is_float($value) && abs($value) < 1e15 && floor($value) === $value) {
        $value = (int) $value;
    }
    return is_int($value) ? (string) $value : sprintf('%.17e', $value);
}

function members($document, $depth, &$out) {
    foreach ($document as $name => $value) {
        $name = (string) $name; // "0" is 0 in an array
        $kind = 'nested';
        $text = $number = '';
        if ($value === null) {
            $kind = 'null';
        } elseif (is_bool($value)) {
            $kind = 'boolean';
            $text = bin2hex($value ? 'true' : 'false');
        } elseif (is_string($value)) {
            $kind = 'string';
            $text = bin2hex($value);
            if (preg_match(NUMBER, $value)) {
                $number = number($value + 0);
            }
        } elseif (is_int($value) || is_float($value)) {
            $kind = 'number';
            $number = number($value);
        }
        $out[] = implode(',', [$depth, $kind, bin2hex($name), bin2hex(strtolower($name)), $text, $number, '']);
        if ($depth === 1 && ($name === 'data' || $name === 'extra') && (is_object($value) || is_array($value))) {
            members($value, 2, $out);
        }
    }
}

$arrays = ($argv[1] ?? '') === 'arrays';
echo 'PHP ', PHP_VERSION, $arrays ? " arrays\n" : " objects\n";
while (($line = fgets(STDIN)) !== false) {
    // As file_get_contents('php://input') gives it: a byte order mark stays.
    $document = json_decode(base64_decode($line), $arrays);
    if (!is_object($document) && !is_array($document)) {
        echo '!', json_last_error() ? json_last_error_msg() : 'no object', "\n";
        continue;
    }
    $out = [];
    members($document, 1, $out);
    echo implode(' ', $out), "\n";
}
