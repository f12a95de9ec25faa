//go:build !linux

package main

import (
	"github.com/spf13/cobra"

	"dray/cmd/internal/cli"
)

// native gives the program what only Linux has.
func native(*cli.App) {}

// nativeCommands returns none: pulling, mounting, running and measuring are for Linux.
func nativeCommands(*cli.App) []*cobra.Command { return nil }
