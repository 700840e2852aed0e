package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"time"
)

// startIAK plays IAK's check-status: it confirms every callback of wrk, some time after
// it was asked.
func (b *bench) startIAK(after time.Duration) (url string, err error) {
	listener, err := new(net.ListenConfig).Listen(b.ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	server := &http.Server{
		ReadHeaderTimeout: time.Minute,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var q struct {
				RefID string `json:"ref_id"`
			}
			if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
				http.Error(w, "no question", http.StatusBadRequest)
				return
			}
			time.Sleep(after)
			_, _ = fmt.Fprintf(w, `{"data":{"ref_id":%q,"status":1,"product_code":"xld25000","customer_id":"0817777215","price":25000,`+
				`"message":"SUCCESS","sn":"0041002233445566","balance":997061249,"tr_id":3482,"rc":"00"}}`, q.RefID)
		}),
	}
	go func() {
		<-b.ctx.Done()
		_ = server.Close()
	}()
	go func() { _ = server.Serve(listener) }() // until the benchmark ends
	return "http://" + listener.Addr().String(), nil
}
