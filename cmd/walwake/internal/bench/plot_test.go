package bench

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
)

// measured is a result with all ways at each rate.
func measured(waiters int, rates ...int) *Result {
	r := &Result{Postgres: "19<beta>"} // what it is told is escaped
	for _, rate := range rates {
		for i, w := range all {
			c := Cell{Way: w.name, Rate: rate, Waiters: waiters, Waits: 100}
			for _, q := range percentiles {
				c.Distribution = append(c.Distribution, [2]float64{q, 100 * float64(i+1) * (1 + q*q/100)})
			}
			r.Cells = append(r.Cells, c)
		}
	}
	return r
}

// drawn returns a picture, and the texts in it; it checks that it is well-formed.
func drawn(t *testing.T, r *Result) (picture string, texts []string) {
	t.Helper()
	var b bytes.Buffer
	if err := r.WriteSVG(&b); err != nil {
		t.Fatal(err)
	}
	picture = b.String()
	in := ""
	for d := xml.NewDecoder(&b); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			in = token.Name.Local
		case xml.EndElement:
			in = ""
		case xml.CharData:
			if in == "text" {
				texts = append(texts, string(token))
			}
		}
	}
	for _, bad := range []string{"NaN", "Inf"} {
		if strings.Contains(picture, bad) {
			t.Errorf("%s is in it", bad)
		}
	}
	if len(picture) > 150_000 {
		t.Errorf("it has %d bytes", len(picture))
	}
	return picture, texts
}

func count(texts []string, text string) (n int) {
	for _, s := range texts {
		if s == text {
			n++
		}
	}
	return n
}

func TestThePictureNamesEachWayOnceAndEachRate(t *testing.T) {
	t.Parallel()
	for _, rates := range [][]int{{0}, {0, 500}, {3000, 500, 0}, {0, 1, 2, 3}} {
		picture, texts := drawn(t, measured(1, rates...))
		for _, way := range Ways() {
			want := 1
			if way == tripWay || way == floorWay { // they wait for nothing
				want = 0
			}
			if n := count(texts, way); n != want {
				t.Errorf("%v: %s is there %d times", rates, way, n)
			}
		}
		if n := count(texts, "1 ms"); n != len(rates) {
			t.Errorf("%v: %d panels", rates, n)
		}
		if n := count(texts, "no other writes"); n != min(1, 1+slices.Index(rates, 0)) {
			t.Errorf("%v: no rate 0", rates)
		}
		if count(texts, "PostgreSQL 19<beta>: from COMMIT acknowledged to known to be replayed") != 1 || count(texts, "10 ms") != len(rates) {
			t.Errorf("%v: got %q", rates, texts)
		}
		// Without a ground of its own it cannot be read on a dark page.
		if !strings.Contains(picture, "fill:#FFFFFF") || strings.Contains(picture, "Sans;") {
			t.Errorf("%v: got %s", rates, picture[:1000])
		}
		if again, _ := drawn(t, measured(1, rates...)); again != picture {
			t.Errorf("%v: it is another each time", rates)
		}
	}
}

func TestThePictureIsOfTheFewestWhoWaitAndWhatWasMeasured(t *testing.T) {
	t.Parallel()
	r := measured(100, 0)
	r.Cells = append(r.Cells, measured(10, 500).Cells...)
	_, texts := drawn(t, r)
	if count(texts, "500 other transactions a second") != 1 || count(texts, "no other writes") != 0 ||
		!strings.HasSuffix(texts[0], ", with 10 waiting for each write") {
		t.Errorf("got %q", texts)
	}

	r = measured(1, 0)
	for i := range r.Cells {
		if r.Cells[i].Way == "walwake-logical" {
			r.Cells[i] = Cell{Way: "walwake-logical", Waiters: 1, Missing: "logical is not possible here"}
		}
	}
	if _, texts := drawn(t, r); count(texts, "walwake-logical") != 0 || count(texts, "walwake") != 1 {
		t.Errorf("got %q", texts)
	}
}

func TestWhatIsAtTheEdgesCanBeDrawn(t *testing.T) {
	t.Parallel()
	for name, distribution := range map[string][][2]float64{
		"all alike":  {{0.5, 100}, {50, 100}, {100, 100}},
		"one point":  {{100, 250}},
		"below 0":    {{0.5, 0}, {50, 0}, {100, 0}},
		"long waits": {{0.5, 1e5}, {50, 5e6}, {99, 2e7}, {100, 2e7}},
	} {
		r := &Result{Postgres: "18.1", Cells: []Cell{{Way: "walwake", Waiters: 1, Waits: 1, Distribution: distribution}, {Way: "a new one", Waiters: 1, Distribution: distribution}}}
		if _, texts := drawn(t, r); count(texts, "walwake") != 1 || count(texts, "a new one") != 1 {
			t.Errorf("%s: got %q", name, texts)
		}
	}
}

func TestWithoutADistributionThereIsNoPicture(t *testing.T) {
	t.Parallel()
	floor := measured(1, 0)
	floor.Cells = floor.Cells[len(floor.Cells)-2:]
	for _, r := range []*Result{{}, {Cells: []Cell{{Way: "walwake", Missing: "not possible"}}}, floor} {
		var b bytes.Buffer
		if err := r.WriteSVG(&b); err == nil || b.Len() > 0 {
			t.Errorf("got %v and %d bytes", err, b.Len())
		}
	}
	if err := measured(1, 0).WriteSVG(full{}); !errors.Is(err, errFull) {
		t.Errorf("got %v", err)
	}
}

var errFull = errors.New("no space left on device")

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errFull }
