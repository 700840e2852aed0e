// Tells what JSON.parse reads from JSON documents. parse.py says how.
'use strict';

const NUMBER = /^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?$/;

// As body-parser, fetch and most libraries do: a byte order mark is skipped.
const utf8 = new TextDecoder('utf-8');

// The same for every number that is equal: 0 and -0.
const number = (value) => String(value === 0 ? 0 : value);

function encoded(text) {
  const bytes = Buffer.from(text, 'utf8');
  if (bytes.toString('utf8') !== text) throw new Error('a lone surrogate');
  return bytes.toString('hex');
}

function members(document, depth, out) {
  // As an app finds them: by name, inherited ones too.
  for (const name in document) {
    const value = document[name];
    let kind = 'nested';
    let text = '';
    let valueNumber = '';
    if (value === null) {
      kind = 'null';
    } else if (typeof value === 'boolean') {
      kind = 'boolean';
      text = encoded(String(value));
    } else if (typeof value === 'string') {
      kind = 'string';
      text = encoded(value);
      if (NUMBER.test(value)) valueNumber = number(Number(value));
    } else if (typeof value === 'number') {
      kind = 'number';
      valueNumber = number(value);
    }
    out.push([depth, kind, encoded(name), encoded(name.toLowerCase()), text, valueNumber, ''].join(','));
    if (depth === 1 && (name === 'data' || name === 'extra') && kind === 'nested' && !Array.isArray(value)) {
      members(value, 2, out);
    }
  }
}

function read(body) {
  const document = JSON.parse(utf8.decode(body));
  if (typeof document !== 'object' || document === null || Array.isArray(document)) throw new Error('no object');
  const out = [];
  members(document, 1, out);
  return out.join(' ');
}

const output = ['Node ' + process.version];
for (const line of require('fs').readFileSync(0, 'latin1').split('\n').slice(0, -1)) {
  try {
    output.push(read(Buffer.from(line, 'base64')));
  } catch (error) {
    output.push('!' + error.message.replace(/\s+/g, ' '));
  }
}
process.stdout.write(output.join('\n') + '\n');
