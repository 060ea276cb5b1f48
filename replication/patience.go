package replication

import "time"

// streamAfter is how long somebody has to wait, on end, before streams are
// opened. Up to then asking is as quick, and costs the server less than
// a walsender: a replica that keeps up is never streamed from.
const streamAfter = 10 * time.Millisecond

// patience knows whether somebody waits for long. It is guarded by its owner's
// mutex.
type patience struct {
	timer   *time.Timer // calls the owner, who calls outlastedLocked
	armed   bool        // it will
	since   time.Time   // somebody has waited on end; zero: nobody waits
	lasting bool        // for streamAfter
	lasted  time.Time   // when lasting was last so; zero: never
}

// followLocked takes note of whether somebody waits.
func (p *patience) followLocked(waiting bool, now time.Time) {
	switch {
	case !waiting:
		if p.lasting {
			p.lasted = now
		}
		p.since, p.lasting = time.Time{}, false
	case p.since.IsZero():
		p.since = now
		if !p.armed {
			p.armed = true
			p.timer.Reset(streamAfter)
		}
	}
}

// outlastedLocked is called by the timer, and reports whether somebody has now
// waited for long.
func (p *patience) outlastedLocked(now time.Time) bool {
	p.armed = false
	if p.since.IsZero() {
		return false
	}
	if left := streamAfter - now.Sub(p.since); left > 0 {
		p.armed = true
		p.timer.Reset(left)
		return false
	}
	p.lasting = true
	return true
}

// idleLocked returns for how long nobody has waited for long: 0 while somebody
// does.
func (p *patience) idleLocked(now time.Time) time.Duration {
	if p.lasting {
		return 0
	}
	return now.Sub(p.lasted)
}
