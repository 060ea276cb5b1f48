package bench

import (
	"bytes"
	"errors"
	"fmt"
	"image/color"
	"io"
	"math"
	"slices"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// A picture is as wide as a README: 675 points are 900 pixels.
const (
	pictureWidth  vg.Length = 675
	panelHeight   vg.Length = 260
	titleHeight   vg.Length = 26
	legendRow     vg.Length = 15
	legendColumns           = 4
	margin        vg.Length = 8
	panelsInARow            = 3
)

// WriteSVG draws the distributions of those who wait alone, or are as few as were
// measured: a panel for each rate, in it a line for each way.
func (r *Result) WriteSVG(w io.Writer) error {
	d := r.drawing()
	if len(d.panels) == 0 {
		return errors.New("there is nothing to draw: no distribution was measured")
	}
	columns := min(len(d.panels), panelsInARow)
	rows := (len(d.panels) + columns - 1) / columns
	legend := legendRow*vg.Length((len(d.ways)+legendColumns-1)/legendColumns) + 2*margin
	canvas := vgsvg.New(pictureWidth, titleHeight+panelHeight*vg.Length(rows)+legend)
	whole := draw.New(canvas)
	whole.SetColor(color.White) // it is seen on a dark page too
	whole.Fill(whole.Path())

	title(whole, 11, vg.Point{X: whole.Center().X, Y: whole.Max.Y - margin}, d.title)

	plots := make([][]*plot.Plot, rows)
	for i := range plots {
		plots[i] = make([]*plot.Plot, columns)
	}
	for i, p := range d.panels {
		plots[i/columns][i%columns] = d.plot(p, i%columns == 0)
	}
	tiles := draw.Tiles{Rows: rows, Cols: columns, PadX: 2 * margin, PadY: margin}
	for i, row := range plot.Align(plots, tiles, draw.Crop(whole, margin, -2*margin, legend, -titleHeight)) {
		for j, tile := range row {
			if p := plots[i][j]; p != nil { // the last row may have fewer
				p.Draw(tile)
				drawn := p.DataCanvas(tile)
				title(tile, 9.5, vg.Point{X: drawn.Center().X, Y: tile.Max.Y}, d.panels[i*columns+j].title)
			}
		}
	}
	d.legend(draw.Crop(whole, 4*margin, -margin, margin, 0), legend-2*margin)
	return writeCanvas(w, canvas)
}

// writeCanvas names fonts as wide for readers who have no Liberation.
func writeCanvas(w io.Writer, canvas *vgsvg.Canvas) error {
	var b bytes.Buffer
	if _, err := canvas.WriteTo(&b); err != nil {
		return err
	}
	_, err := w.Write(bytes.ReplaceAll(b.Bytes(), []byte("font-family:Liberation Sans;"), []byte("font-family:Liberation Sans,Arial,Helvetica,sans-serif;")))
	return err
}

// drawing is what there is to draw.
type drawing struct {
	title    string
	panels   []panel
	ways     []string
	from, to float64 // the axis of latencies, as exponents
}

// panel is the cells of a rate.
type panel struct {
	title string
	rate  int
	cells []*Cell
}

func (r *Result) drawing() *drawing {
	d := &drawing{from: math.Inf(1), to: math.Inf(-1)}
	var cells []*Cell
	waiters := math.MaxInt
	for i := range r.Cells {
		if c := &r.Cells[i]; !slices.Contains([]string{tripWay, floorWay}, c.Way) && len(c.Distribution) > 0 {
			cells = append(cells, c)
			waiters = min(waiters, c.Waiters)
		}
	}
	for _, c := range cells {
		if c.Waiters == waiters {
			d.add(c)
		}
	}
	d.from, d.to = math.Floor(d.from*4)/4-0.25, math.Ceil(d.to*4)/4+0.1 // some room beside
	d.title = "PostgreSQL " + r.Postgres + ": from COMMIT acknowledged to known to be replayed"
	if waiters > 1 {
		d.title += fmt.Sprintf(", with %d waiting for each write", waiters)
	}
	return d
}

func (d *drawing) add(c *Cell) {
	at := slices.IndexFunc(d.panels, func(p panel) bool { return p.rate == c.Rate })
	if at < 0 {
		at = len(d.panels)
		title := "no other writes"
		if c.Rate > 0 {
			title = strconv.Itoa(c.Rate) + " other transactions a second"
		}
		d.panels = append(d.panels, panel{title: title, rate: c.Rate})
	}
	p := &d.panels[at]
	p.cells = append(p.cells, c)
	if !slices.Contains(d.ways, c.Way) {
		d.ways = append(d.ways, c.Way)
	}
	for _, q := range c.Distribution {
		if q[0] >= 20 && q[0] <= 99 { // the rest is in tables, and would leave little room for this
			d.from, d.to = min(d.from, exponent(q[1])), max(d.to, exponent(q[1]))
		}
	}
}

// exponent is where a latency is on its axis, which begins with 0.1 µs.
func exponent(us float64) float64 { return math.Log10(max(us, 0.1)) }

func title(c draw.Canvas, size vg.Length, at vg.Point, text string) {
	style := plot.New().Title.TextStyle
	style.Font, style.Color, style.XAlign, style.YAlign = face(size), ink, draw.XCenter, draw.YTop
	c.FillText(style, at, text)
}

// plot draws a panel. The first in a row says what the vertical axis is.
func (d *drawing) plot(p panel, first bool) *plot.Plot {
	out := plot.New()
	out.Title.Text = " " // room for one above what is drawn, where plot would have it above the axis too
	out.Title.TextStyle.Font = face(12)
	out.X.Label.Text, out.X.Tick.Marker = "latency", d.latencies()
	if first {
		out.Y.Label.Text = "share of waits that are over"
	}
	out.Y.Tick.Marker = shares(first)
	for _, a := range []*plot.Axis{&out.X, &out.Y} {
		a.Padding = 0
		a.Color, a.Tick.Color = ink, ink
		a.Label.TextStyle.Font, a.Tick.Label.Font = face(9), face(9)
		a.Label.TextStyle.Color, a.Tick.Label.Color = ink, ink
	}
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = ground, ground
	out.Add(grid)
	for _, c := range onTop(p.cells, nativeWay) { // it is what others are in relation to
		out.Add(&plotter.Line{XYs: points(c.Distribution), LineStyle: styleOf(c.Way)})
	}
	out.X.Min, out.X.Max, out.Y.Min, out.Y.Max = d.from, d.to, 0, 100 // after Add, which widens them
	return out
}

// onTop has a way's cells at the end, where they are drawn over the others.
func onTop(cells []*Cell, way string) []*Cell {
	cells = slices.Clone(cells)
	slices.SortStableFunc(cells, func(a, b *Cell) int {
		switch {
		case a.Way != way && b.Way == way:
			return -1
		case a.Way == way && b.Way != way:
			return 1
		}
		return 0
	})
	return cells
}

// points leaves out what nobody could see.
func points(distribution [][2]float64) plotter.XYs {
	xys := plotter.XYs{{X: exponent(distribution[0][1]), Y: 0}}
	for i, q := range distribution {
		to, last := plotter.XY{X: exponent(q[1]), Y: q[0]}, xys[len(xys)-1]
		if to.X-last.X > 0.02 || to.Y-last.Y > 0.8 || i == len(distribution)-1 {
			xys = append(xys, to)
		}
	}
	return xys
}

// latencies names the decades, as people say them.
func (d *drawing) latencies() plot.ConstantTicks {
	var ticks plot.ConstantTicks
	for decade := math.Floor(d.from); decade <= d.to; decade++ {
		for n := 1.0; n < 10; n++ {
			tick := plot.Tick{Value: decade + math.Log10(n)}
			if us := math.Pow(10, decade); n == 1 {
				tick.Label = strconv.FormatFloat(us/1e3, 'g', 4, 64) + " ms"
				if us >= 1e6 {
					tick.Label = strconv.FormatFloat(us/1e6, 'g', 4, 64) + " s"
				}
			}
			ticks = append(ticks, tick)
		}
	}
	return ticks
}

func shares(named bool) plot.ConstantTicks {
	var ticks plot.ConstantTicks
	for _, share := range []float64{0, 25, 50, 75, 100} {
		tick := plot.Tick{Value: share, Label: " "}
		if named {
			tick.Label = fmt.Sprintf("%.0f %%", share)
		}
		ticks = append(ticks, tick)
	}
	return ticks
}

// legend names the ways once for all panels, column by column.
func (d *drawing) legend(area draw.Canvas, height vg.Length) {
	rows := (len(d.ways) + legendColumns - 1) / legendColumns
	column := 0
	for ways := range slices.Chunk(d.ways, rows) {
		l := plot.NewLegend()
		l.Top, l.Left, l.ThumbnailWidth = true, true, 30
		l.TextStyle.Font, l.TextStyle.Color = face(9), ink
		l.YPosition = draw.PosCenter
		for _, way := range ways {
			l.Add(way, &plotter.Line{LineStyle: styleOf(way)})
		}
		l.Padding = legendRow - l.TextStyle.Rectangle("p").Max.Y
		place := area
		place.Min.X += vg.Length(column) * area.Size().X / legendColumns
		place.Max.Y = area.Min.Y + height
		l.Draw(place)
		column++
	}
}

// Colours are Okabe and Ito's, which those who see fewer can tell apart too.
var (
	ink    = color.Gray{0x24}
	ground = color.Gray{0xe2}

	dots  = []vg.Length{1.3, 2}
	short = []vg.Length{4, 2}
	long  = []vg.Length{8, 2.5}

	// Loops are grey, and walwake's lines thicker than all others.
	styles = map[string]draw.LineStyle{
		"poll-100ms":          {Color: color.Gray{0xb0}, Width: 1.2},
		"server-loop-50ms":    {Color: color.Gray{0xb0}, Width: 1.2, Dashes: short},
		"poll-10ms":           {Color: color.Gray{0x80}, Width: 1.2},
		"poll-1ms":            {Color: color.Gray{0x80}, Width: 1.2, Dashes: short},
		tightWay:              {Color: color.Gray{0x00}, Width: 1.2},
		"tight-loop-timeline": {Color: color.Gray{0x00}, Width: 1.2, Dashes: short},
		nativeWay:             {Color: color.RGBA{0xd5, 0x5e, 0x00, 0xff}, Width: 1.6},
		"walwake":             {Color: color.RGBA{0x00, 0x72, 0xb2, 0xff}, Width: 2.6},
		"walwake-physical":    {Color: color.RGBA{0x00, 0x9e, 0x73, 0xff}, Width: 2.1, Dashes: long},
		"walwake-logical":     {Color: color.RGBA{0xcc, 0x79, 0xa7, 0xff}, Width: 2.1, Dashes: short},
		"walwake-waitfor":     {Color: color.RGBA{0x56, 0xb4, 0xe9, 0xff}, Width: 2.1},
		"walwake-poll":        {Color: color.RGBA{0x56, 0xb4, 0xe9, 0xff}, Width: 2.1, Dashes: dots},
	}
)

func styleOf(way string) draw.LineStyle {
	if s, ok := styles[way]; ok {
		return s
	}
	return draw.LineStyle{Color: ink, Width: 1, Dashes: dots}
}

func face(size vg.Length) font.Font {
	return font.Font{Typeface: "Liberation", Variant: "Sans", Size: size}
}
