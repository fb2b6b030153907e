// Nextflow: two processes, of which the first plans a job and keeps it in a file, and the second does it.
//
//     nextflow run examples/nextflow/main.nf --input stack.tif --output iso.zarr --options '--zoom 2'
//
// An option that makes no sense, and a job that does not fit, are refused by the plan, which takes a second and no GPU.

params.input = null
params.output = null
params.options = ''

process plan {
    input:
    val stack
    val result
    val options

    output:
    path 'job.toml'

    script:
    """
    isovoxel plan '${stack}' '${result}' ${options} --save job.toml
    """
}

// The zarr is no file of this process: each try has a folder of its own, and isovoxel goes on with what is there. So a
// retry does what is left.
process scale {
    errorStrategy 'retry'
    maxRetries 2
    cpus 4

    input:
    path job
    val result

    output:
    val result

    script:
    """
    isovoxel scale --config '${job}' --threads ${task.cpus}
    """
}

workflow {
    // Absolute, for every process runs in a folder of its own.
    plan(file(params.input, glob: false, checkIfExists: true), file(params.output, glob: false), params.options)
    scale(plan.out, file(params.output, glob: false))
}
