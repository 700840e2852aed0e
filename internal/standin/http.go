package standin

import (
	"crypto/subtle"
	_ "embed"
	"encoding/json"
	"errors"
	"html/template"
	"io"
	"net/http"

	"github.com/caddy-iak/iakcallback/internal/iak"
	"github.com/caddy-iak/iakcallback/internal/record"
)

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Parse(pageText))

const maxRequest = 64 << 10

// Handler serves IAK's addresses, and the report.
func (s *StandIn) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /api/top-up", s.serveTopUp)
	mux.HandleFunc("POST /api/check-status", s.serveStatus)
	mux.HandleFunc("POST /api/check-balance", s.serveBalance)
	mux.HandleFunc("GET /{$}", s.serveReport)
	mux.HandleFunc("POST /click", s.serveClick)
	// A page elsewhere must not click here.
	return http.NewCrossOriginProtection().Handler(mux)
}

// request is what an app sends, with the names of version 1 or 2.
type request struct {
	Username    string `json:"username"`
	RefID       string `json:"ref_id"`
	Sign        string `json:"sign"`
	ProductCode string `json:"product_code"`
	PulsaCode   string `json:"pulsa_code"`
	CustomerID  string `json:"customer_id"`
	HP          string `json:"hp"`
}

// read reads a request that is signed over what is signed, or answers it.
func (s *StandIn) read(w http.ResponseWriter, r *http.Request, signed func(q *request) string) (q *request, ok bool) {
	q = new(request)
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err == nil {
		err = json.Unmarshal(body, q)
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, "208", "INVALID JSON")
		return nil, false
	}
	given, _ := iak.ParseSignature(q.Sign)
	want := s.secret.Sign(signed(q))
	if q.Username != s.Username || subtle.ConstantTimeCompare(given[:], want[:]) != 1 {
		refuse(w, http.StatusOK, "204", "WRONG AUTHENTICATION SIGNATURE")
		return nil, false
	}
	return q, true
}

// refuse answers as IAK does: status 2, though it says nothing of an order.
func refuse(w http.ResponseWriter, status int, rc, message string) {
	answer(w, status, map[string]any{"status": record.Failed, "rc": rc, "message": message})
}

func answer(w http.ResponseWriter, status int, data map[string]any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"data": data}) // he may have hung up
}

func (s *StandIn) serveTopUp(w http.ResponseWriter, r *http.Request) {
	q, ok := s.read(w, r, func(q *request) string { return q.RefID })
	if !ok {
		return
	}
	product, customer := q.ProductCode+q.PulsaCode, q.CustomerID+q.HP
	if product == "" || customer == "" || q.RefID == "" || len(q.RefID) > iak.MaxRefIDLength {
		refuse(w, http.StatusBadRequest, "208", "INVALID DATA")
		return
	}
	o := s.topUp(q.RefID, product, customer)
	answer(w, http.StatusOK, o.data())
}

func (s *StandIn) serveStatus(w http.ResponseWriter, r *http.Request) {
	q, ok := s.read(w, r, func(q *request) string { return q.RefID })
	if !ok {
		return
	}
	o, found := s.get(q.RefID)
	if !found {
		refuse(w, http.StatusOK, "06", "TRANSACTION NOT FOUND")
		return
	}
	answer(w, http.StatusOK, o.data())
}

func (s *StandIn) serveBalance(w http.ResponseWriter, r *http.Request) {
	if _, ok := s.read(w, r, func(*request) string { return "bl" }); !ok {
		return
	}
	_, balance := s.report()
	answer(w, http.StatusOK, map[string]any{"balance": balance, "message": "SUCCESS", "rc": "00"})
}

// data is an order in an answer: there, numbers are numbers.
func (o *order) data() map[string]any {
	data := map[string]any{
		"ref_id": o.RefID, "status": o.Status, "product_code": o.Product, "customer_id": o.Customer, "price": o.Price,
		"message": o.message(), "balance": o.Balance, "tr_id": json.Number(o.TrID), "rc": o.rc(),
	}
	for _, f := range o.goods() {
		data[f.Name] = f.Value
	}
	return data
}

func (s *StandIn) serveReport(w http.ResponseWriter, _ *http.Request) {
	orders, balance := s.report()
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
	_ = page.Execute(w, map[string]any{"Orders": orders, "Balance": balance, "To": s.To, "Outcome": s.Outcome})
}

// Statuses that a click can ask for.
var clicks = map[string]record.Status{OutcomeSuccess: record.Success, OutcomeFailed: record.Failed}

var errClick = errors.New("click SUCCESS or FAILED of an order")

func (s *StandIn) serveClick(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxRequest)
	to, ok := clicks[r.PostFormValue("to")]
	if !ok || !s.click(r.PostFormValue("ref_id"), to) {
		http.Error(w, errClick.Error(), http.StatusBadRequest)
		return
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}
