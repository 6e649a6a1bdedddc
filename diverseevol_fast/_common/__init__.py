"""What every stage uses: errors, files, provenance, progress, the processes of a job. It imports no stage."""
