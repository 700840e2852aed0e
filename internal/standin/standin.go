// Package standin plays IAK for a merchant's own tests, on his own machine: it takes
// orders, calls back, and answers check-status. It never contacts IAK.
package standin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/caddy-iak/iakcallback/internal/iak"
	"github.com/caddy-iak/iakcallback/internal/record"
)

// What can become of an order.
const (
	OutcomeSuccess  = "success"  // a success, called back
	OutcomeFailed   = "failed"   // a failure, called back
	OutcomePending  = "pending"  // it stays under way, and is not called back
	OutcomeLost     = "lost"     // a success whose callback never comes
	OutcomeTwice    = "twice"    // a success, called back twice
	OutcomeReversed = "reversed" // a success, and some time later a failure
)

// Outcomes are all of them.
func Outcomes() []string {
	return []string{OutcomeSuccess, OutcomeFailed, OutcomePending, OutcomeLost, OutcomeTwice, OutcomeReversed}
}

const (
	firstBalance = 1_000_000_000
	firstTrID    = 3482
	anyPrice     = 16500
	maxOrders    = 10_000 // then the oldest is forgotten
	sendTimeout  = 60 * time.Second
)

// Options say how IAK is played.
type Options struct {
	To       string        // where callbacks go
	Delay    time.Duration // before each
	XML      bool          // callbacks in XML, else JSON
	Version2 bool          // with the names of version 2
	Outcome  string        // of each order
	Username string
	APIKey   string
	Log      func(line string) // is told what happens, without goods
}

// StandIn is an IAK of one merchant.
type StandIn struct {
	Options
	secret iak.Secret
	client *http.Client
	ctx    context.Context // of what goes on in the background
	end    context.CancelFunc
	busy   sync.WaitGroup

	mu      sync.Mutex
	balance int
	nextID  int
	orders  []*order // the oldest first
}

// order is one order, as IAK knows it.
type order struct {
	RefID, Product, Customer, TrID string
	Price, Balance                 int
	Status                         record.Status
	Made                           time.Time
	Last                           string // what became of the last callback, empty before
}

// New returns a stand-in, which works until Close.
func New(o Options) (*StandIn, error) {
	to, err := url.Parse(o.To)
	switch {
	case err != nil || to.Scheme != "http" && to.Scheme != "https" || to.Hostname() == "":
		return nil, errors.New("callbacks need a url to go to, such as http://localhost:8080/iak/callback")
	case !slices.Contains(Outcomes(), o.Outcome):
		return nil, fmt.Errorf("no such outcome: use %s", strings.Join(Outcomes(), ", "))
	}
	s := &StandIn{
		Options: o, secret: iak.NewSecret(o.Username, o.APIKey), balance: firstBalance, nextID: firstTrID,
		client: &http.Client{
			Timeout:       sendTimeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	s.ctx, s.end = context.WithCancel(context.Background())
	return s, nil
}

// Close ends what goes on, and waits for it.
func (s *StandIn) Close() {
	s.end()
	s.busy.Wait()
}

// topUp takes an order, once: again, it answers what has become of it.
func (s *StandIn) topUp(refID, product, customer string) order {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.find(refID); o != nil {
		return *o
	}
	o := &order{RefID: refID, Product: product, Customer: customer, TrID: strconv.Itoa(s.nextID), Price: price(product), Made: time.Now()}
	s.nextID++
	s.balance -= o.Price
	o.Balance = s.balance
	if s.orders = append(s.orders, o); len(s.orders) > maxOrders {
		s.orders = slices.Delete(s.orders, 0, 1)
	}
	s.Log(fmt.Sprintf("order %q: taken", refID))
	s.busy.Go(func() { s.play(refID) })
	return *o
}

// price is what a product's code ends with, as in xld25000.
func price(product string) int {
	digits := product[len(strings.TrimRight(product, "0123456789")):]
	n, err := strconv.Atoi(digits)
	if err != nil || n <= 0 || len(digits) > 9 {
		return anyPrice
	}
	return n
}

func (s *StandIn) find(refID string) *order {
	for _, o := range s.orders {
		if o.RefID == refID {
			return o
		}
	}
	return nil
}

// get returns an order as it is.
func (s *StandIn) get(refID string) (o order, found bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if there := s.find(refID); there != nil {
		return *there, true
	}
	return o, false
}

// play lets become of an order what its outcome says.
func (s *StandIn) play(refID string) {
	if s.Outcome == OutcomePending || !s.wait() {
		return
	}
	if s.Outcome == OutcomeFailed {
		s.turn(refID, record.Failed)
	} else {
		s.turn(refID, record.Success)
	}
	if s.Outcome == OutcomeLost {
		s.Log(fmt.Sprintf("order %q: success, and no callback is sent", refID))
		return
	}
	s.call(refID)
	switch s.Outcome {
	case OutcomeTwice:
		s.call(refID)
	case OutcomeReversed:
		if s.wait() {
			s.turn(refID, record.Failed)
			s.call(refID)
		}
	}
}

// wait waits for the delay, and tells whether the stand-in still works.
func (s *StandIn) wait() bool {
	timer := time.NewTimer(s.Delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-s.ctx.Done():
		return false
	}
}

// turn gives an order another status. What failed is paid back.
func (s *StandIn) turn(refID string, to record.Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.find(refID)
	if o == nil || o.Status == to {
		return
	}
	switch {
	case to == record.Failed:
		s.balance += o.Price
	case o.Status == record.Failed:
		s.balance -= o.Price
	}
	o.Status, o.Balance = to, s.balance
}

// call calls back once, and keeps what became of it.
func (s *StandIn) call(refID string) {
	o, found := s.get(refID)
	if !found {
		return
	}
	result := s.send(&o)
	s.Log(fmt.Sprintf("order %q: callback %s: %s", refID, o.Status, result))
	s.mu.Lock()
	defer s.mu.Unlock()
	if there := s.find(refID); there != nil {
		there.Last = o.Status.String() + ": " + result
	}
}

func (s *StandIn) send(o *order) string {
	body, contentType := "", "application/json"
	fields := o.callback(s.secret)
	if s.Version2 {
		fields.Version2()
	}
	if s.XML {
		contentType = "application/xml"
		var err error
		if body, err = fields.XML(); err != nil {
			return err.Error()
		}
	} else {
		body = fields.JSON()
	}
	r, err := http.NewRequestWithContext(s.ctx, http.MethodPost, s.To, strings.NewReader(body))
	if err != nil {
		return "the url is none that can be sent to"
	}
	r.Header.Set("Content-Type", contentType)
	r.Header.Set("User-Agent", "iak-callback-stand-in")
	r.Close = true
	answer, err := s.client.Do(r) //nolint:gosec // the url is the one that the person names
	if err != nil {
		if inner := new(url.Error); errors.As(err, &inner) {
			err = inner.Err // without the url: it may hold a token
		}
		return "no answer: " + err.Error()
	}
	defer answer.Body.Close()
	_, _ = io.Copy(io.Discard, answer.Body)
	return "answered " + answer.Status
}

// rc, message and goods are what IAK says beside a status.
func (o *order) rc() string {
	return [...]string{"39", "00", "07"}[o.Status]
}

func (o *order) message() string {
	return [...]string{"PROCESS", "SUCCESS", "FAILED"}[o.Status]
}

// goods are the fields of a success that a customer receives, by the kind of product.
func (o *order) goods() iak.Fields {
	sample := "other"
	switch {
	case o.Status != record.Success:
		return nil
	case strings.HasPrefix(o.Product, "esim"):
		sample = "esim"
	case strings.HasPrefix(o.Product, "hs") || strings.HasPrefix(o.Product, "game"):
		sample = "game"
	}
	var goods iak.Fields
	for _, f := range iak.Sample(sample) {
		if f.Name == "sn" || f.Name == "pin" || f.Name == "activation_code" {
			goods = append(goods, iak.Field{Name: f.Name, Value: f.Value + "-" + o.TrID})
		}
	}
	return goods
}

// callback are the fields of a callback, as IAK orders them.
func (o *order) callback(secret iak.Secret) iak.Fields {
	fields := iak.Fields{
		{Name: "ref_id", Value: o.RefID}, {Name: "status", Value: o.Status.Digit()}, {Name: "code", Value: o.Product},
		{Name: "hp", Value: o.Customer}, {Name: "price", Value: strconv.Itoa(o.Price)}, {Name: "message", Value: o.message()},
	}
	fields = append(fields, o.goods()...)
	return append(fields, iak.Fields{
		{Name: "balance", Value: strconv.Itoa(o.Balance)}, {Name: "tr_id", Value: o.TrID}, {Name: "rc", Value: o.rc()},
		{Name: "sign", Value: secret.Sign(o.RefID).String()},
	}...)
}

// click is what a click in the sandbox report does: it turns the order and sends one
// callback.
func (s *StandIn) click(refID string, to record.Status) (found bool) {
	if _, found = s.get(refID); found {
		s.turn(refID, to)
		s.call(refID)
	}
	return found
}

// report are the orders, the newest first.
func (s *StandIn) report() (all []order, balance int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range slices.Backward(s.orders) {
		all = append(all, *o)
	}
	slices.SortStableFunc(all, func(a, b order) int { return cmp.Compare(b.Made.UnixNano(), a.Made.UnixNano()) })
	return all, s.balance
}
