//go:build linux

package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ErrNoProfile reports that none of the servers can be profiled.
var ErrNoProfile = errors.New("only dray itself can be profiled: name bin/dray among the servers (dray-guest leaves profiles out, to be small)")

// profiled is the kind of rival that takes --profile.
const profiled = "dray"

// profileTimeout bounds how long a server may take to write a recording.
const profileTimeout = 30 * time.Second

// profiles makes one run of each dray with each image, which does not count.
func (h *harness) profiles(ctx context.Context) error {
	for _, rival := range h.Rivals {
		if rival.Kind != profiled {
			continue
		}
		for _, i := range h.images {
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("bench: %w", context.Cause(ctx))
			}
			h.Say("profile: %s %s", rival.Name, i.Name)
			p := Profile{Rival: rival.Name, Image: i.Name}
			if err := h.profile(ctx, job{rival, []CorpusImage{i}, Individual, h.Networks[0], 0}, &p); err != nil {
				p.Error = err.Error()
				h.Say("profile: %v", err)
			}
			h.report.Profiles = append(h.report.Profiles, p)
		}
	}
	return nil
}

func (h *harness) profile(ctx context.Context, j job, p *Profile) (err error) {
	name := strings.NewReplacer("/", "-", " ", "-").Replace(j.rival.Name + "-" + j.images[0].Name)
	if p.Files, err = filepath.Abs(filepath.Join(h.ProfileDir, name)); err != nil {
		return err
	}
	if err := os.RemoveAll(p.Files); err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	s, err := h.newSite(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close(ctx, h.Grace)) }()
	ctx, cancel := context.WithTimeoutCause(ctx, h.Timeout, fmt.Errorf("the run took longer than %s", h.Timeout))
	defer cancel()
	if err := h.prepare(ctx, s, j); err != nil {
		return err
	}
	parts := filepath.Join(s.dir, "profile")
	if err := h.startServer(ctx, s, j.rival, &Run{}, "--profile", parts); err != nil {
		return err
	}
	if _, err := cutProfile(ctx, s.server, parts, 1); err != nil { // what starting took
		return err
	}
	q, err := h.request(s, j, j.images[0], "bundle")
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := j.rival.ask(ctx, s, q); err != nil {
		return fmt.Errorf("pull %s: %w", j.images[0].Name, err)
	}
	p.Seconds = time.Since(begin).Seconds()
	for _, pid := range s.processes() {
		_, peak := residentBytes(pid)
		p.PeakRSS = max(p.PeakRSS, peak)
	}
	made, err := cutProfile(ctx, s.server, parts, 2)
	if err != nil {
		return err
	}
	return p.keep(made)
}

// keep reads a recording and copies its files to where the report is.
func (p *Profile) keep(made string) error {
	raw, err := os.ReadFile(filepath.Join(made, recordingFile)) //nolint:gosec // the run's own file
	if err != nil {
		return fmt.Errorf("read profile: %w", err)
	}
	p.Recording = &Recording{}
	if err := json.Unmarshal(raw, p.Recording); err != nil {
		return fmt.Errorf("read profile: %w", err)
	}
	if err := os.CopyFS(p.Files, os.DirFS(made)); err != nil {
		return fmt.Errorf("keep profile: %w", err)
	}
	return nil
}

// cutProfile ends the server's recording n and returns its directory.
func cutProfile(ctx context.Context, server *process, dir string, n int) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, profileTimeout)
	defer cancel()
	if err := server.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		return "", fmt.Errorf("cut profile: %w", err)
	}
	made := filepath.Join(dir, strconv.Itoa(n))
	err := poll(ctx, server, func() error {
		_, err := os.Stat(made)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("the server wrote no profile (is it another dray's?): %w", err)
	}
	return made, err
}
