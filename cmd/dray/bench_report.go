package main

import (
	"github.com/spf13/cobra"

	"dray/cmd/internal/cli"
	"dray/internal/bench"
)

func newBenchReportCommand(app *cli.App) *cobra.Command {
	var output, html, baseline string
	cmd := &cobra.Command{
		Use:   "report FILE...",
		Short: "Merge and compare reports that bench wrote as JSON",
		Long: `Prints the runs of all reports together, as if they were one; --baseline compares
them with another report. -o writes the merged report.` + cli.ExitCodes(),
		Example: app.Example("bench report before.json", "bench report after.json --baseline before.json --html page.html"),
		Args:    cobra.MinimumNArgs(1),
		RunE:    func(_ *cobra.Command, args []string) error { return runBenchReport(app, args, output, html, baseline) },
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "`file` to write the merged report to as JSON")
	cmd.Flags().StringVar(&html, "html", "", "`file` to write a page with charts to")
	cmd.Flags().StringVar(&baseline, "baseline", "", "`file` of the report to compare with")
	return cmd
}

func runBenchReport(app *cli.App, files []string, output, html, baseline string) error {
	var reports []*bench.Report
	for _, name := range files {
		r, err := bench.ReadReport(name)
		if err != nil {
			return err
		}
		reports = append(reports, r)
	}
	var before *bench.Report
	if baseline != "" {
		var err error
		if before, err = bench.ReadReport(baseline); err != nil {
			return err
		}
	}
	merged := bench.Merge(reports...)
	if output != "" {
		if err := merged.Write(output); err != nil {
			return err
		}
	}
	if html != "" {
		if err := merged.SaveHTML(html); err != nil {
			return err
		}
	}
	return printReport(app, merged, before)
}

func printReport(app *cli.App, report, baseline *bench.Report) error {
	if app.Globals.JSON {
		return app.PrintJSON(report)
	}
	return report.WriteText(app.Stdout, baseline)
}
