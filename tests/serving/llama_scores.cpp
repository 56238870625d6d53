// What llama.cpp computes, for test_engines: llama_scores MODEL.gguf < PROMPTS, one prompt of token numbers a line.
// It prints the log-probability of each token but the first, a line for each prompt.

#include "llama.h"

#include <cmath>
#include <cstdio>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

int main(int, char ** argv) {
    llama_log_set([](ggml_log_level level, const char * text, void *) {
        if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
    }, nullptr);
    llama_backend_init();
    llama_model_params how = llama_model_default_params();
    how.n_gpu_layers = 0;
    llama_model * model = llama_model_load_from_file(argv[1], how);
    if (!model) return 1;
    const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));

    for (std::string line; std::getline(std::cin, line);) {
        std::istringstream numbers(line);
        std::vector<llama_token> tokens;
        for (llama_token token; numbers >> token;) tokens.push_back(token);
        const int length = tokens.size();

        llama_context_params sizes = llama_context_default_params();
        sizes.n_ctx = sizes.n_batch = sizes.n_ubatch = length;
        sizes.n_threads = sizes.n_threads_batch = 1;
        sizes.type_k = sizes.type_v = GGML_TYPE_F32;
        sizes.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
        llama_context * context = llama_init_from_model(model, sizes);
        llama_batch batch = llama_batch_init(length, 0, 1);
        batch.n_tokens = length;
        for (int i = 0; i < length; i++) {
            batch.token[i] = tokens[i];
            batch.pos[i] = i;
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i] = true;
        }
        if (!context || llama_decode(context, batch) != 0) return 1;
        for (int i = 0; i + 1 < length; i++) {
            const float * logits = llama_get_logits_ith(context, i);
            double largest = logits[0], sum = 0;
            for (int v = 1; v < vocabulary; v++) largest = std::fmax(largest, logits[v]);
            for (int v = 0; v < vocabulary; v++) sum += std::exp(logits[v] - largest);
            printf("%s%.9g", i ? " " : "", logits[tokens[i + 1]] - largest - std::log(sum));
        }
        printf("\n");
        llama_batch_free(batch);
        llama_free(context);
    }
    llama_model_free(model);
}
