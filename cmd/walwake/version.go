package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// version says what was built, from what, with what.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "walwake (unknown version)"
	}
	commit, modified := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			commit = ", commit " + s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			modified = " with changes"
		}
	}
	return fmt.Sprintf("walwake %s%s%s, %s %s/%s", info.Main.Version, commit, modified, info.GoVersion, runtime.GOOS, runtime.GOARCH)
}
