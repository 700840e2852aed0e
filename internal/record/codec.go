package record

import "errors"

// ErrUnreadable is a record that this version cannot read. It is never taken for
// none: that would deliver again what was accepted.
var ErrUnreadable = errors.New("the record was written by another version of iak_callback, or the key is used by something else: " +
	"run one version on one store, or give it a key_prefix of its own")
