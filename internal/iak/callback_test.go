package iak

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
)

// The memory that callbacks share one after the other holds nothing of another
// callback, nor does what a callback has given away change with the next.
func TestMemoryOfCallbacks(t *testing.T) {
	type kept struct{ got, want string }
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			var all []kept
			for i := range 200 {
				name := fmt.Sprintf("order-%d-%d", worker, i)
				members := []string{}
				if i%3 == 0 { // more members than documented, and one that is escaped
					for n := range 10 * (i % 7) {
						members = append(members, fmt.Sprint("note", n), quote(name+"\n"))
					}
				}
				body := order(name, fmt.Sprint(i%2+1), members...)
				want, err := Decode([]byte(body)) // memory of its own, since it is never given back
				if err == nil {
					err = want.CheckFields(false)
				}
				if err != nil {
					t.Error(err)
					return
				}
				c, err := Decode([]byte(body))
				if err != nil {
					t.Error(err)
					return
				}
				if err := errors.Join(c.CheckRefID(), c.CheckFields(false)); err != nil {
					t.Error(err)
				}
				all = append(all,
					kept{c.RefID, name},
					kept{string(c.AppendIAK(nil)), string(want.AppendIAK(nil))},
					kept{string(c.AppendFlat(nil)), strings.Replace(string(want.AppendFlat(nil)), `"ref_id":""`, `"ref_id":"`+name+`"`, 1)})
				c.Release()
			}
			for _, k := range all {
				if k.got != k.want {
					t.Errorf("%s\nwant\n%s", k.got, k.want)
				}
			}
		})
	}
	wg.Wait()
}
